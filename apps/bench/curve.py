"""`pilotfish bench curve`: the time of a step of n rows, T(n), on every engine, and how fast prompts are read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

import numpy as np

from ... import __version__, backends
from ...backends.protocol import Backend
from ...loading.choosing import Wish, first_threads
from ...loading.load import resolve
from ...loading.opening import Place, open_weights
from ...runtime.encoder_input import stand_in
from ...runtime.errors import OptionError
from ...runtime.files.model_file import ModelFile
from ...runtime.interfaces import Session, Tokens
from ...runtime.sampling.finite import for_json
from ...runtime.storage import write_atomically
from .. import machine
from ..terminal import LoadProgress, console, output, print_json, show_table, show_text
from .plotting import drawn, require_plots

WIDTHS = (1, 2, 4, 8, 16, 32)
_PAUSE_S = 0.05  # for the threads of the engine before to go to sleep


def bench_curve(
    model: str, *, engines: str, context: int, repeats: int, threads: int | None, out: Path | None, as_json: bool
) -> None:
    """Measure and show a table; with `out`, write curve.json and curve.png there."""
    require_plots(out)
    file = resolve(model)
    chosen = engines_of(file, engines)
    n_context, known = context + 2 * WIDTHS[-1], file.context_length
    if n_context > known:
        raise OptionError(
            f"--context {context} is too long: the model knows {known}, and {2 * WIDTHS[-1]} rows follow."
        )
    n_threads = Wish(threads=threads).threads or first_threads()
    opened = []
    try:
        with LoadProgress() as progress:
            for backend in chosen:
                opened.append(open_weights(file, Place(backend, None, n_threads), progress)[0])
        sessions = {w.info.engine: w.session(n_context) for w in opened}
        rows = _measure(sessions, context, repeats)
        for session in sessions.values():
            session.close()
        versions = {w.info.engine: f"{w.info.engine} {w.info.engine_version} {w.info.settings}" for w in opened}
    finally:
        for weights in opened:
            weights.close()
    report = {
        "pilotfish": __version__,
        "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "model": file.path.name,
        "context": context,
        "threads": n_threads,
        "engines": {versions[name]: row for name, row in rows.items()},
    }
    print_json(report) if as_json else _show(report)
    if out is not None:
        write_atomically(out / "curve.json", json.dumps(for_json(report), indent=1).encode())
        _plot(report, out / "curve.png")
        console().print(f"wrote {out / 'curve.json'} and {out / 'curve.png'}", soft_wrap=True)


def engines_of(model: ModelFile, names: str) -> list[Backend]:
    """The engines of these names, comma-separated, each once, or for "all" those that open the model; each is here.

    Raises EngineMissingError, OptionError and UnsupportedModelError.
    """
    if names == "all":
        return backends.openers(model)
    return [backends.named(model, name) for name in dict.fromkeys(part.strip() for part in names.split(","))]


def _measure(sessions: dict[str, Session], context: int, repeats: int) -> dict[str, dict[str, object]]:
    """Median milliseconds by engine and width; engines take turns within every repeat."""
    steps: dict[str, dict[int, list[float]]] = {name: {w: [] for w in WIDTHS} for name in sessions}
    prefill: dict[str, list[float]] = {name: [] for name in sessions}
    with LoadProgress() as progress:
        done, total = 0, repeats * len(sessions)
        progress("measuring", 0.0)
        for _ in range(repeats):
            for name, session in sessions.items():
                time.sleep(_PAUSE_S)
                tokens = np.random.default_rng(0).integers(0, session.info.vocab_size, context + WIDTHS[-1])
                prefill[name].append(_prompt_rate(session, tokens[:context]))
                for width in WIDTHS:
                    for _ in range(3):
                        began = time.perf_counter()
                        session.forward(tokens[context : context + width], n_logits=width)
                        steps[name][width].append(1e3 * (time.perf_counter() - began))
                        session.truncate(context)
                done += 1
                progress("measuring", done / total)
    return {
        name: {
            "step_ms": {str(w): median(times) for w, times in steps[name].items()},
            "prefill_tokens_per_s": median(prefill[name]),
        }
        for name in sessions
    }


def _prompt_rate(session: Session, tokens: Tokens) -> float:
    """Tokens of a prompt, or of a source (or frames of sound), read in a second; the session holds the tokens then."""
    source = stand_in(session.info)
    session.truncate(0)
    began = time.perf_counter()
    if source is not None:
        session.encode(source)
        seconds = time.perf_counter() - began
        session.forward(tokens, n_logits=0)
        return float(source.shape[-1] / seconds)
    session.forward(tokens, n_logits=0)
    return len(tokens) / (time.perf_counter() - began)


def _show(report: dict[str, object]) -> None:
    out = output()
    show_text(
        out,
        f"{report['machine']}; {report['model']}, {report['context']} tokens before, {report['threads']} threads; "
        "ms for a step of n rows",
    )
    heads = ("engine", *[f"n={w}" for w in WIDTHS], "T(8) / T(1)", "prompt tok/s")
    rows: list[tuple[str, ...]] = []
    engines = report["engines"]
    assert isinstance(engines, dict)
    for name, row in engines.items():
        ms = row["step_ms"]
        times = [f"{ms[str(w)]:.1f}" for w in WIDTHS]
        rows.append((name, *times, f"{ms['8'] / ms['1']:.2f}", f"{row['prefill_tokens_per_s']:.0f}"))
    show_table(out, heads, rows)


def _plot(report: dict[str, object], path: Path) -> None:
    """Milliseconds by rows, one line for every engine."""
    engines = report["engines"]
    assert isinstance(engines, dict)
    with drawn(path, (7, 4)) as (_, [[axes]]):
        for name, row in engines.items():
            axes.plot(list(WIDTHS), [row["step_ms"][str(w)] for w in WIDTHS], marker="o", label=name)
        axes.set_xlabel("rows in a step")
        axes.set_ylabel("ms")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{report['model']}, {report['context']} tokens before ({report['machine']})", fontsize=9)
        axes.legend(fontsize=8)
