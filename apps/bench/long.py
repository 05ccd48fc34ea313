"""`pilotfish bench long`: texts longer than the context, by excerpts and by a cache that goes on without end."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ... import __version__
from ...loading.load import load
from ...runtime.cache.compression import entries_for
from ...runtime.cache.policies import policy_by_name
from ...runtime.cache.sequence import CachedSequence
from ...runtime.decoding.scoring import surprisal
from ...runtime.errors import OptionError
from ...runtime.interfaces import Tokens
from ...runtime.model.excerpt import Score, default_budget, excerpt
from ...runtime.model.model import Model
from ...runtime.progress import Progress
from ...runtime.sampling.finite import for_json
from ...runtime.storage import write_atomically
from .. import machine
from ..terminal import LoadProgress, output, print_json, show_table, show_text
from .inputs import read_text
from .plotting import drawn, require_plots

_NEEDLE = "\nThe secret number of the lighthouse is {}.\n"
_QUESTION = "What is the secret number of the lighthouse?"
_BLOCK = 512  # tokens whose perplexity is one point of the curve
_ANSWER = 24  # new tokens


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. times: lengths of texts, in contexts; curve: tokens of a text that is only read; 0: none."""

    times: tuple[int, ...]
    depths: int
    budget: int | None
    segment: int
    curve: int
    policy: str


@dataclass(frozen=True, slots=True)
class Needle:
    """One number hidden in one text. method: a score of excerpts, or "truncation" to the text's two ends."""

    method: str
    tokens: int
    depth: float
    kept: bool  # whether the number was in the prompt
    answered: bool
    seconds: float  # before the answer began to be made


def bench_long(
    model: str,
    *,
    settings: Settings,
    max_context: int | None,
    text: Path | None,
    engine: str | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure and show; with `out`, write long.json and long.png there."""
    require_plots(out)
    policy_by_name(settings.policy)  # refuses before anything is loaded
    book = read_text(text)
    with LoadProgress() as progress:
        loaded = load(
            model, engine, draft=None, speculate=False, threads=threads, max_context=max_context, progress=progress
        )
    with loaded:
        tokens = loaded.encode(book, raw=True)
        longest = max([settings.curve, *(n * loaded.max_context for n in settings.times)])
        if longest > len(tokens):
            raise OptionError(
                f"the text has {len(tokens)} tokens, and {longest} are wanted; --text takes a longer one."
            )
        lengths = [n * loaded.max_context for n in settings.times]
        reading = LoadProgress()
        with reading as progress:
            needles = [x for n in lengths for x in _needles(loaded, tokens[:n], settings, progress)]
            curves = _curves(loaded, tokens[: settings.curve], settings.policy, reading) if settings.curve else None
        report: dict[str, Any] = {
            "pilotfish": __version__,
            "machine": machine.describe(),
            "date": time.strftime("%Y-%m-%d"),
            "model": Path(model).name,
            "engine": f"{loaded.info.engine} {loaded.info.engine_version}",
            "context": loaded.info.context_length,
            "max_context": loaded.max_context,
            "settings": asdict(settings),
            "text": str(text) if text else "Python's language reference",
            "needles": [asdict(x) for x in needles],
            "curve": curves,
        }
    print_json(report) if as_json else _show(report)
    if out is not None:
        write_atomically(out / "long.json", json.dumps(for_json(report), indent=1).encode())
        if report["curve"]:
            _plot(report, out / "long.png")


def _needles(model: Model, tokens: Tokens, settings: Settings, progress: Progress) -> list[Needle]:
    """Every depth by every method."""
    text, found = model.tokenizer.decode(tokens.tolist()), []
    limit = min(model.max_context, model.info.context_length)
    usual = default_budget(limit * 3 // 4, limit, len(model.encode(_QUESTION)), settings.segment)
    budget = settings.budget or usual
    for i in range(settings.depths):
        depth = i / max(settings.depths - 1, 1)
        at = text.rfind("\n", 0, max(int(len(text) * depth), 1)) + 1
        number = str(np.random.default_rng(31 * len(tokens) + i).integers(10_000, 100_000))
        document = text[:at] + _NEEDLE.format(number) + text[at:]
        for method in ("truncation", *get_args(Score)):
            progress(f"finding a number in {len(tokens)} tokens, by {method}", i / settings.depths)
            began = time.perf_counter()
            if method == "truncation":
                prompt = _two_ends(model, document, budget)
            else:
                prompt = excerpt(
                    model, document, _QUESTION, budget=budget, segment=settings.segment, score=method
                ).prompt
            seconds = time.perf_counter() - began
            answer = model.generate(prompt, max_new_tokens=_ANSWER).text
            found.append(Needle(method, len(tokens), depth, number in prompt, number in answer, seconds))
    return found


def _two_ends(model: Model, document: str, budget: int) -> str:
    """The document's beginning and end before the question, in at most so many tokens."""
    tokens = model.tokenizer.encode(document, bos=False)
    half = (budget - len(model.encode(_QUESTION)) - 16) // 2
    ends = (model.tokenizer.decode(part.tolist()) for part in (tokens[:half], tokens[len(tokens) - half :]))
    return "\n[...]\n".join(ends) + f"\n\n{_QUESTION}"


def _curves(model: Model, tokens: Tokens, policy_name: str, reading: LoadProgress) -> dict[str, Any]:
    """Mean -log p of every block, with the full cache as far as the model goes and with the policy to the end."""
    policy, rows, info = policy_by_name(policy_name), model.calibration.rows.rule(), model.info
    full = CachedSequence(model.target.session(), rows)
    kept = CachedSequence(model.target.session(entries_for(policy, rows, info)), rows, policy)
    found: dict[str, Any] = {"block": _BLOCK}
    for name, sequence in (("full", full), (policy_name, kept)):
        began = time.perf_counter()
        n = min(len(tokens), sequence.longest - rows.maximum)
        losses, _ = surprisal(sequence, tokens[:n], 0, reading.tokens(f"reading with {name}"))
        blocks = [float(losses[i : i + _BLOCK].mean()) for i in range(0, len(losses) - _BLOCK + 1, _BLOCK)]
        found[name] = {
            "loss": blocks,
            "seconds": time.perf_counter() - began,
            "kv_bytes": sequence.session.nbytes,
            "last_position": int(sequence.session.positions[-1]),
        }
        sequence.session.close()
    return found


def _show(report: dict[str, Any]) -> None:
    out = output()
    about = f"{report['model']} on {report['engine']}, max_context {report['max_context']}"
    show_text(out, f"{report['machine']}; {about}")
    rows = []
    for n, method in dict.fromkeys((x["tokens"], x["method"]) for x in report["needles"]):
        some = [x for x in report["needles"] if (x["tokens"], x["method"]) == (n, method)]
        kept, answered, seconds = (float(np.mean([x[k] for x in some])) for k in ("kept", "answered", "seconds"))
        rows.append((str(n), method, f"{kept:.0%}", f"{answered:.0%}", f"{seconds:.1f} s"))
    if rows:
        show_table(out, ("text, tokens", "method", "kept", "answered", "before the answer"), rows)
    for name, curve in (report["curve"] or {}).items():
        if name != "block":
            loss, n = curve["loss"], report["context"] // _BLOCK
            parts = [math.exp(np.mean(loss[i : i + n])) for i in range(0, len(loss), n)]
            said = ", ".join(f"{x:.2f}" for x in parts)
            show_text(
                out,
                f"{name}: perplexity by context of {report['context']} tokens: {said}; "
                f"{curve['kv_bytes'] / 2**20:.0f} MiB, {curve['seconds']:.0f} s",
            )


def _plot(report: dict[str, Any], path: Path) -> None:
    """Perplexity by place in the text."""
    with drawn(path, (7, 3.5)) as (_, [[axes]]):
        for name, curve in report["curve"].items():
            if name != "block":
                places = (np.arange(len(curve["loss"])) + 1) * _BLOCK
                axes.plot(places, np.exp(curve["loss"]), marker=".", label=name)
        axes.axvline(report["context"], linestyle="--", color="gray", label="the model's context")
        axes.set_xlabel("tokens")
        axes.set_ylabel("perplexity")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
        axes.set_title(f"{report['model']} on {report['engine']}, {report['text']}", fontsize=8)
