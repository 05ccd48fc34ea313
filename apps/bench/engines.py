"""`pilotfish bench engines`: our plain decoding over each engine against the same engine driven by its own API."""

from __future__ import annotations

import time
from statistics import mean, median

from ... import __version__
from ...loading.choosing import Wish
from ...loading.load import load, resolve
from ...runtime.checks import whole
from ...runtime.errors import OptionError
from ...runtime.model.model import Model
from .. import machine
from ..terminal import LoadProgress, console, output, print_json, show_table, show_text
from .bare import Peer, open_peer
from .curve import engines_of
from .run import choose_prompts, read_prompts

_PAUSE_S = 0.05  # for the threads of the one before to go to sleep


def bench_engines(
    model: str, *, engines: str, n_prompts: int, n_tokens: int, repeats: int, threads: int | None, as_json: bool
) -> None:
    """Run the benchmark and show a table; one engine after the other, each interleaved with its peer."""
    file = resolve(model)
    names = [backend.name for backend in engines_of(file, engines)]
    Wish(threads=threads)  # checks the number
    whole("--tokens", n_tokens, 1, file.context_length, hint="the model knows no more")
    asked = read_prompts(None)
    n_sets = len({name for name, _ in asked})
    prompts = [r.prompt for r in choose_prompts(asked, "all", max(1, -(-n_prompts // n_sets)))][:n_prompts]
    rows = []
    for name in names:
        with LoadProgress() as progress:
            bare = {"pair_rows": False} if name == "llamacpp" else {}  # its single row as it is, whatever its bits
            ours = load(file, name, speculate=False, exact=False, threads=threads, options=bare, progress=progress)
        with ours:
            need = max(len(ours.encode(p)) for p in prompts) + n_tokens + 8
            if need > ours.info.context_length:
                raise OptionError(f"--tokens is {n_tokens}: the model knows {ours.info.context_length}, not {need}.")
            peer = open_peer(name, file, ours.info.threads, need)
            if peer is None:
                console().print(f"{name}: its own way of decoding this model is not installed; left out")
                continue
            try:
                rows.append(_compare(ours, peer, prompts, n_tokens, repeats))
            finally:
                peer.close()
    if not rows:
        raise OptionError(f"no engine with a peer opens {file}; `pilotfish doctor` shows what can be added.")
    report = {
        "pilotfish": __version__,
        "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "model": file.path.name,
        "new_tokens": n_tokens,
        "repeats": repeats,
        "engines": rows,
    }
    if as_json:
        print_json(report)
    else:
        _show(report, rows)


def _compare(ours: Model, peer: Peer, prompts: list[str], n_tokens: int, repeats: int) -> dict[str, object]:
    """Rates of both over the same prompts, A B then B A, and what our own code took of a round."""
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    own, steps, same = [], [], 0
    info = ours.info
    with LoadProgress() as progress:
        what, done, total = f"measuring {info.engine}", 0, repeats * len(prompts)
        progress(what, 0.0)
        for turn in range(repeats + 1):  # the first warms up
            for prompt in prompts if turn else prompts[:1]:
                ids = ours.encode(prompt).tolist()
                found: dict[str, tuple[int, ...]] = {}
                for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
                    time.sleep(_PAUSE_S)
                    if who == "theirs":
                        found[who], seconds = peer.decode(ids, n_tokens)
                    else:
                        result = ours.generate(prompt, max_new_tokens=n_tokens)
                        found[who], seconds = result.token_ids, result.stats.decode_s
                        if turn:
                            own += [r.other_s for r in result.rounds]
                            steps += [r.verify_s for r in result.rounds]
                    if turn:
                        rates[who].append(len(found[who]) / seconds)
                n = min(map(len, found.values()))
                same += bool(turn) and found["ours"][:n] == found["theirs"][:n]
                if turn:
                    done += 1
                    progress(what, done / total)
    pairs = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
    return {
        "engine": f"{info.engine} {info.engine_version}, {info.threads} threads",
        "ours_tokens_per_s": mean(rates["ours"]),
        "theirs_tokens_per_s": mean(rates["theirs"]),
        "ratio": median(pairs),
        "lowest": min(pairs),
        "step_ms": 1e3 * median(steps),
        "own_ms": 1e3 * median(own),
        "own_share": median(own) / (median(own) + median(steps)),
        "same_text": same,
        "texts": repeats * len(prompts),
    }


def _show(report: dict[str, object], rows: list[dict[str, object]]) -> None:
    out = output()
    show_text(out, f"{report['machine']}; {report['model']}; {report['new_tokens']} tokens, {report['repeats']} passes")
    heads = ("engine", "ours tok/s", "itself tok/s", "ratio", "lowest", "step ms", "our code ms", "share", "same")
    shown = []
    for row in rows:
        numbers = [f"{row[k]:.2f}" for k in ("ratio", "lowest", "step_ms", "own_ms")]
        rates = [f"{row[k]:.1f}" for k in ("ours_tokens_per_s", "theirs_tokens_per_s")]
        same = f"{row['same_text']} of {row['texts']}"
        shown.append((str(row["engine"]), *rates, *numbers, f"{100 * float(str(row['own_share'])):.1f} %", same))
    show_table(out, heads, shown)
