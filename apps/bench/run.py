"""`pilotfish bench run`: plain against speculative decoding on the same prompts, interleaved, in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import mean, median

from ... import __version__
from ...loading.load import resolve
from ...runtime.checks import shown
from ...runtime.errors import OptionError
from ...runtime.interfaces import Round
from ...runtime.model.model import Model
from ...runtime.sampling.finite import for_json
from ...runtime.sampling.sampling import Sampling
from ...runtime.storage import write_atomically
from .. import machine
from ..terminal import LoadProgress, console, output, print_json, show_table, show_text
from .bare import Peer, open_peers
from .copies import CopyTask, copied_share, copy_tasks, forced
from .inputs import read_text
from .plotting import plot_ratios, require_plots
from .unremembering import Unremembering, opened

PLAIN, SPECULATIVE, ONE_ROW = "plain", "speculative", "one row"
_BARE = "bare "  # before the name of an engine that is driven by its own API
_DOCUMENT = "document"  # the set of one long prompt
_Decode = Callable[["PromptResult", int], "Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoding of one prompt."""

    token_ids: tuple[int, ...]
    seconds: float
    rounds: tuple[Round, ...] = ()

    @property
    def rate(self) -> float:
        return len(self.token_ids) / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class PromptResult:
    """All passes over one prompt, by contestant. task: where the answer is given."""

    set: str
    prompt: str
    task: CopyTask | None = None
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        """Median tokens per second."""
        return median(s.rate for s in self.samples[name])

    @property
    def same_text(self) -> bool:
        """Whether every plain and every speculative pass gave the same tokens."""
        return len({s.token_ids for name in (PLAIN, SPECULATIVE) for s in self.samples[name]}) == 1


def bench(
    model: str,
    *,
    sets: str,
    prompts: Path | None,
    per_set: int,
    n_tokens: int,
    repeats: int,
    engine: str | None,
    draft: str | None,
    cache: str | None,
    document: int | None,
    out: Path | None,
    as_json: bool,
    threads: int | None,
    max_context: int | None,
) -> None:
    """Run the benchmark and show a table; with `out`, write results.json and ratios.png there.

    document: tokens of one long prompt to ask instead of the sets'.
    """
    require_plots(out)
    rows = read_prompts(prompts)
    with LoadProgress() as progress:
        file = resolve(model, progress)
        chosen = (
            _copies(rows, sets, per_set)
            if prompts is None and file.is_encoder_decoder
            else choose_prompts(rows, sets, per_set)
        )
        known = file.context_length
        room = known if max_context is None else min(max_context, known)
        if n_tokens >= room:
            raise OptionError(f"--tokens is {shown(n_tokens)}, and a prompt comes before them: of {room} in all.")
        if document is not None and document >= room:
            raise OptionError(f"--document is {shown(document)}, but there is room for {room} tokens in all.")
        loaded, fresh = opened(
            model, engine=engine, draft=draft, cache=cache, threads=threads, max_context=room, progress=progress
        )
    with loaded:
        if document is not None:
            chosen = [PromptResult(_DOCUMENT, _beginning(loaded, document))]
        results = _measure(loaded, model, chosen, n_tokens, repeats, fresh)
        report = _report(loaded, results, n_tokens, repeats)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if out is not None:
        write_atomically(out / "results.json", json.dumps(for_json(report), indent=1).encode())
        plot_ratios(report, out / "ratios.png")
        console().print(f"wrote {out / 'results.json'} and {out / 'ratios.png'}", soft_wrap=True)


def _beginning(model: Model, n_tokens: int) -> str:
    """So many tokens of a long English text."""
    tokens = model.encode(read_text(None), raw=True)[:n_tokens]
    return model.tokenizer.decode(tokens.tolist())


def read_prompts(path: Path | None) -> list[tuple[str, str]]:
    """(set, prompt) of a JSONL file; None is the built-in one. Raises OptionError."""
    try:
        source = resources.files(__package__) / "prompts" / "bench.jsonl" if path is None else path
        lines = source.read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [(str(row["set"]), str(row["prompt"])) for row in rows]
    except FileNotFoundError:
        raise OptionError(f"there is no file {path}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f'{path} must hold one JSON object {{"set", "prompt"}} a line: {error}.') from error


def choose_prompts(rows: list[tuple[str, str]], sets: str, per_set: int) -> list[PromptResult]:
    """So many prompts of each of the sets named, comma-separated, or of all."""
    known = list(dict.fromkeys(name for name, _ in rows))
    wanted = known if sets == "all" else [s.strip() for s in sets.split(",")]
    for name in wanted:
        if name not in known:
            raise OptionError(f"there is no prompt set {name!r}; there are {', '.join(known)}.")
    return [PromptResult(name, text) for w in wanted for name, text in [r for r in rows if r[0] == w][:per_set]]


def _copies(rows: list[tuple[str, str]], sets: str, per_set: int) -> list[PromptResult]:
    """Tasks for an encoder-decoder model, made of the same texts."""
    tasks = {(t.set, t.source): t for t in copy_tasks([text for _, text in rows], per_set)}
    return [PromptResult(r.set, r.prompt, tasks[r.set, r.prompt]) for r in choose_prompts([*tasks], sets, per_set)]


def _measure(
    model: Model, source: str, results: list[PromptResult], n_tokens: int, repeats: int, fresh: Unremembering
) -> list[PromptResult]:
    plain, one_row = model.sibling(policy=None), model.sibling(policy=None, exact=False)
    contestants: dict[str, _Decode] = {
        PLAIN: _decoder(plain),
        SPECULATIVE: _decoder(model, fresh),
        ONE_ROW: _decoder(one_row),
    }
    peers: dict[str, Peer] = {}
    if results[0].set != _DOCUMENT and results[0].task is None:  # a document they would read again for every answer
        peers = open_peers(resolve(source), model.info.threads, model.max_context)
    contestants |= {_BARE + name: _bare_decoder(peer, model) for name, peer in peers.items()}
    names = list(contestants)
    try:
        for decode in contestants.values():
            decode(results[0], 8)  # the first steps of a process are slower
        with LoadProgress() as progress:
            done, total = 0, len(results) * repeats * len(names)
            progress("measuring", 0.0)
            for turn in range(repeats):
                for result in results:
                    for name in names if turn % 2 == 0 else reversed(names):  # A B, then B A
                        result.samples.setdefault(name, []).append(contestants[name](result, n_tokens))
                        done += 1
                        progress("measuring", done / total)
    finally:
        plain.close()
        one_row.close()
        for peer in peers.values():
            peer.close()
    return results


def _bare_decoder(peer: Peer, model: Model) -> _Decode:
    return lambda asked, n: Sample(*peer.decode(model.encode(asked.prompt).tolist(), n))


def _decoder(model: Model, fresh: Unremembering | None = None) -> _Decode:
    def decode(asked: PromptResult, n: int) -> Sample:
        if fresh is not None:
            fresh.forget()
        processors = () if asked.task is None else (forced(model, asked.task.answer),)
        result = model.generate(asked.prompt, max_new_tokens=n, sampling=Sampling(processors=processors))
        return Sample(result.token_ids, result.stats.decode_s, result.rounds)

    return decode


def _report(model: Model, results: list[PromptResult], n_tokens: int, repeats: int) -> dict[str, object]:
    """Everything measured, as plain data. A set's ratio is the mean of rates over the mean of plain rates."""
    sets, info = {}, model.info
    for name in dict.fromkeys(r.set for r in results):
        group = [r for r in results if r.set == name]
        rates = {c: mean(r.rate(c) for r in group) for c in group[0].samples}
        rounds = [r for result in group for s in result.samples[SPECULATIVE] for r in s.rounds]
        drafted, accepted = sum(r.drafted for r in rounds), sum(r.accepted for r in rounds)
        shares = [copied_share(model, r.task) for r in group if r.task is not None]
        sets[name] = {
            "prompts": len(group),
            **({"copied": mean(shares)} if shares else {}),
            "tokens_per_s": rates,
            "times_plain": {c: rate / rates[PLAIN] for c, rate in rates.items()},
            "lowest_times_plain": min(r.rate(SPECULATIVE) / r.rate(PLAIN) for r in group),
            **_against_bare(group, rates),
            "accepted": accepted,
            "drafted": drafted,
            "tokens_per_round": sum(len(r.tokens) for r in rounds) / max(len(rounds), 1),
            "same_text": sum(r.same_text for r in group),
        }
    every = [r for result in results for s in result.samples[SPECULATIVE] for r in s.rounds]
    undrafted = [r for result in results for s in result.samples[PLAIN] for r in s.rounds]
    return {
        "pilotfish": __version__,
        "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "model": info.digest[:16],
        "engine": f"{info.engine} {info.engine_version} on {info.device}, {info.threads} threads",
        "new_tokens": n_tokens,
        "repeats": repeats,
        "sets": sets,
        "own_ms_per_round": {
            SPECULATIVE: 1e3 * median(r.other_s + r.draft_s for r in every),
            PLAIN: 1e3 * median(r.other_s for r in undrafted),
        },
        "price_of_exactness": model.calibration.price_of_exactness,
        "kv_bytes": model.generate(results[0].prompt, max_new_tokens=1).stats.kv_bytes,
    }


def _against_bare(group: list[PromptResult], rates: dict[str, float]) -> dict[str, object]:
    """What the user could run instead: the fastest engine of a set, driven bare, and ours as a multiple of it."""
    bare = {name: rate for name, rate in rates.items() if name.startswith(_BARE)}
    if not bare:
        return {}
    fastest = max(bare, key=bare.__getitem__)
    times = [r.rate(SPECULATIVE) / r.rate(fastest) for r in group]
    return {"fastest_bare": fastest, "times_bare": median(times), "lowest_times_bare": min(times)}


def _show(report: dict[str, object]) -> None:
    out = output()
    sets = report["sets"]
    assert isinstance(sets, dict)
    has_bare = any("fastest_bare" in row for row in sets.values())
    heads = [
        "set",
        "tok/s",
        "plain",
        "one row",
        "x plain",
        "low",
        *(["fastest bare", "x bare", "low"] * has_bare),
    ]
    rows = []
    for name, row in sets.items():
        speed = row["tokens_per_s"]
        shown = [f"{speed[n]:.1f}" for n in (SPECULATIVE, PLAIN, ONE_ROW)]
        shown += [f"{row['times_plain'][SPECULATIVE]:.2f}", f"{row['lowest_times_plain']:.2f}"]
        if has_bare:
            bare = row["fastest_bare"]
            shown += [f"{bare.removeprefix(_BARE)} {speed[bare]:.1f}"]
            shown += [f"{row['times_bare']:.2f}", f"{row['lowest_times_bare']:.2f}"]
        rows.append((name, *shown, f"{row['accepted']}/{row['drafted']}", f"{row['same_text']}/{row['prompts']}"))
    show_text(
        out, f"{report['machine']}; {report['engine']}; {report['new_tokens']} tokens, {report['repeats']} passes"
    )
    show_table(out, (*heads, "accepted", "same"), rows)
    own = report["own_ms_per_round"]
    assert isinstance(own, dict)
    for name, row in sets.items():
        if "copied" in row:
            show_text(out, f"{name}: {row['copied']:.1%} of the answers' tokens stand in their sources")
    show_text(
        out,
        f"our own code, median ms a round: {own[SPECULATIVE]:.2f} with drafts, {own[PLAIN]:.2f} without; "
        f"price of exactness (two-row over one-row step): {report['price_of_exactness']:.2f}",
    )
