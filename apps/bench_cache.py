"""`pilotfish bench cache`: what each cache policy forgets and saves, against the full cache of the same engine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.progress import Progress

from .. import __version__
from ..loading import load
from ..runtime.cache_policies import POLICIES, CachePolicy, policy_by_name
from ..runtime.compression import entries_for
from ..runtime.errors import AbilityError, OptionError
from ..runtime.interfaces import Floats, Tokens, Weights
from ..runtime.model import Model
from ..runtime.rows import RowRule
from ..runtime.sequence import CachedSequence
from . import machine
from .bench_cache_inputs import read_share, read_text, sized_policy
from .bench_cache_report import show, write_report
from .terminal import LoadProgress, console

_STEPS = 9  # timed at the end of the text, in turns with the full cache
_NEEDLE = "\n\nThe secret number of the lighthouse is {}.\n\n"
_QUESTION = "\n\nAs was said above, the secret number of the lighthouse is"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. length: tokens of the text, the second half of which is predicted."""

    length: int
    needle_lengths: tuple[int, ...]
    depths: int


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one size. *_full: of the full cache beside it, ceiling: of a full cache of no more entries."""

    policy: str
    share: str
    entries: int
    perplexity: float
    perplexity_full: float
    kl: float  # nats a token, of the full cache's law to the compressed one's
    agreement: float  # share of places at which both find the same token most probable
    needles: tuple[tuple[int, float, float], ...]  # length, depth, share of the number's tokens that were found
    kv_bytes: int
    kv_bytes_full: int
    step_ms: float
    step_ms_full: float
    step_ms_ceiling: float
    prompt_s: float
    prompt_s_full: float
    select_s: float  # of prompt_s, choosing and moving entries
    command: str

    @property
    def recall(self) -> float | None:
        """Mean over the grid."""
        return float(np.mean([found for _, _, found in self.needles])) if self.needles else None


def bench_cache(
    model: str,
    *,
    policies: list[str],
    shares: list[str],
    settings: Settings,
    text: Path | None,
    engine: str | None,
    kv_dtype: str | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure and show a table; with `out`, write cache.json, cache.png and needles.png there."""
    parts = [read_share(s) for s in shares]
    names = policies or [*POLICIES, "chunk-snapkv"]
    for name in policies:
        policy_by_name(name)  # refuses before anything is loaded
    with LoadProgress() as progress:
        loaded = load(model, engine, draft=None, speculate=False, kv_dtype=kv_dtype, threads=threads, progress=progress)
    command = " ".join(
        ["pilotfish bench cache", model, f"--engine {loaded.info.engine}", f"--length {settings.length}"]
        + [f"--needle-lengths {','.join(map(str, settings.needle_lengths))}", f"--depths {settings.depths}"]
        + ([f"--text {text}"] if text else []) + ([f"--kv-dtype {kv_dtype}"] if kv_dtype else [])
    )  # fmt: skip
    with loaded:
        bench = _Bench(loaded, read_text(text), settings, command)
        rows, refused = _all_rows(bench, names, parts)
        report = {
            "pilotfish": __version__,
            "machine": machine.describe(),
            "date": time.strftime("%Y-%m-%d"),
            "model": Path(model).name,
            "engine": f"{loaded.info.engine} {loaded.info.engine_version} {loaded.info.settings}".strip(),
            "threads": loaded.info.threads,
            "length": settings.length,
            "text": str(text) if text else "Python's language reference",
            "full_needles": bench.needles_full,
            "rows": [{**asdict(row), "recall": row.recall} for row in rows],
            "refused": refused,
        }
    print(json.dumps(report)) if as_json else show(report)
    if out is not None:
        written = write_report(report, out)
        console().print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)


def _all_rows(bench: _Bench, names: list[str], shares: list[Fraction]) -> tuple[list[Row], dict[str, str]]:
    """Every row that the engine can run, and why it cannot run the others."""
    rows, refused = [], {}
    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task("measuring", total=len(names) * len(shares))
        for share in shares:
            for name in names:
                progress.update(task, description=f"{name} at {share}", advance=1)
                try:
                    rows.append(bench.row(name, share))
                except AbilityError as error:
                    refused[name] = str(error)
    return rows, refused


class _Bench:
    """The text, the full cache, and what one row takes."""

    def __init__(self, model: Model, text: str, settings: Settings, command: str) -> None:
        self.settings, self._command = settings, command
        self._weights: Weights = model.target
        self._rows: RowRule = model.calibration.rows.rule()
        self._model = model
        self._tokens = model.encode(text, raw=True)
        longest = max(settings.length, *settings.needle_lengths, 0)
        limit = model.info.context_length - 64
        if settings.length < 64 or longest > min(limit, len(self._tokens)):
            raise OptionError(
                f"--length and --needle-lengths must lie in 64..{min(limit, len(self._tokens))}: the model knows "
                f"{model.info.context_length} positions and the text has {len(self._tokens)} tokens; --text takes a "
                "longer one."
            )
        self._full = CachedSequence(self._weights.session(longest + 64), self._rows)
        self.needles_full = self._needles(self._full)

    def row(self, name: str, share: Fraction) -> Row:
        """Raises AbilityError where the engine cannot carry the policy out."""
        length = self.settings.length
        policy = sized_policy(name, int(length * share))
        sequence = self._compressed(policy)
        try:
            prompt_s, prompt_s_full = self._read_prompt(sequence), self._read_prompt(self._full)
            assert sequence.compression is not None
            select_s = sequence.compression.seconds
            law = self._compare(sequence)
            step_ms, step_ms_full, step_ms_ceiling = self._steps(sequence)
            sizes = sequence.session.nbytes, self._full.session.nbytes
        finally:
            sequence.session.close()
        needles = []
        for n in self.settings.needle_lengths:  # the same share of each length
            sized = sized_policy(name, int(n * share))
            one = self._compressed(sized)
            try:
                needles += self._needles(one, (n,))
            finally:
                one.session.close()
        return Row(
            name,
            str(share),
            policy.budget + policy.every,
            *law,
            tuple(needles),
            *sizes,
            step_ms,
            step_ms_full,
            step_ms_ceiling,
            prompt_s,
            prompt_s_full,
            select_s,
            f"{self._command} --policy {name} --share {share}",
        )

    def _compressed(self, policy: CachePolicy) -> CachedSequence:
        session = self._weights.session(entries_for(policy, self._rows, self._weights.info))
        try:
            return CachedSequence(session, self._rows, policy)
        except AbilityError:
            session.close()
            raise

    def _read_prompt(self, sequence: CachedSequence) -> float:
        sequence.truncate(0)
        began = time.perf_counter()
        sequence.cover(self._tokens[: self.settings.length])
        return time.perf_counter() - began

    def _compare(self, sequence: CachedSequence) -> tuple[float, float, float, float]:
        """Perplexity with the compressed and the full cache, KL and agreement, over the second half of the text."""
        length = self.settings.length
        loss = loss_full = kl = same = 0.0
        for at, logits in _logits(sequence, self._tokens[:length], length // 2):
            self._full.cover(self._tokens[:at])
            ours = _log_law(logits)
            theirs = _log_law(self._full.forward(self._tokens[at : at + len(logits)], n_logits=len(logits)).logits)
            after = self._tokens[at + 1 : at + 1 + len(logits)]
            rows = np.arange(len(after))
            loss -= float(ours[rows, after].sum())
            loss_full -= float(theirs[rows, after].sum())
            kl += float((np.exp(theirs) * (theirs - ours))[rows].sum())
            same += float((ours.argmax(axis=1) == theirs.argmax(axis=1))[rows].sum())
        n = length - length // 2 - 1
        return math.exp(loss / n), math.exp(loss_full / n), kl / n, same / n

    def _steps(self, sequence: CachedSequence) -> tuple[float, float, float]:
        """Median ms of the narrowest step: compressed, full, and full with no more entries; in turns."""
        short = CachedSequence(self._weights.session(sequence.n_entries + 64), self._rows)
        short.cover(self._tokens[: sequence.n_entries])
        times: list[list[float]] = [[], [], []]
        for _ in range(_STEPS):
            for taken, one in zip(times, (sequence, self._full, short), strict=True):
                n = len(one.tokens)
                began = time.perf_counter()
                one.session.forward(self._tokens[: self._rows.minimum], n_logits=self._rows.minimum)
                taken.append(1e3 * (time.perf_counter() - began))
                one.session.truncate(n)
        short.session.close()
        ours, full, ceiling = (median(x) for x in times)
        return ours, full, ceiling

    def _needles(
        self, sequence: CachedSequence, lengths: tuple[int, ...] | None = None
    ) -> list[tuple[int, float, float]]:
        """Share of the answer's tokens that are found, each after the ones before it, by length and depth."""
        found = []
        for n in self.settings.needle_lengths if lengths is None else lengths:
            for i in range(self.settings.depths):
                depth = i / max(self.settings.depths - 1, 1)
                prompt, answer = self._haystack(n, depth, seed=31 * n + i)
                tokens = np.concatenate([prompt, answer])
                sequence.truncate(0)
                right = 0
                for at, logits in _logits(sequence, tokens, len(prompt) - 1):
                    after = tokens[at + 1 : at + 1 + len(logits)]
                    right += int((logits[: len(after)].argmax(axis=1) == after).sum())
                found.append((n, depth, right / len(answer)))
        return found

    def _haystack(self, n: int, depth: float, seed: int) -> tuple[Tokens, Tokens]:
        number = str(np.random.default_rng(seed).integers(10_000, 100_000))
        encode = self._model.tokenizer.encode
        needle, question = (encode(x, bos=False) for x in (_NEEDLE.format(number), _QUESTION))
        room = n - len(needle) - len(question)
        if room < 2:
            raise OptionError(
                f"a needle and its question take {n - room} tokens, so {n} are too few; see --needle-lengths."
            )
        at = max(int(room * depth), 1)  # behind the first token, which may be special
        hay = self._tokens[:room]
        answer = encode(_QUESTION + " " + number, bos=False)[len(question) :]
        spaces = 0  # a space is no part of what must be remembered
        while not self._model.tokenizer.decode(answer[spaces : spaces + 1].tolist()).strip():
            spaces += 1
        return np.concatenate([hay[:at], needle, hay[at:], question, answer[:spaces]]), answer[spaces:]


def _logits(sequence: CachedSequence, tokens: Tokens, first: int) -> Iterator[tuple[int, Floats]]:
    """(place, logits after it and those behind it) from token `first` on; compressed where decoding would be."""
    sequence.cover(tokens[:first])
    widest = sequence.rows.maximum
    while (at := len(sequence.tokens)) < len(tokens):
        if sequence.until_compression == 0:
            sequence.compress()
        n = min(widest, len(tokens) - at, sequence.until_compression or widest)
        width = sequence.rows.fit(n)
        padded = np.concatenate([tokens[at : at + n], np.full(width - n, tokens[at + n - 1])])
        logits = sequence.forward(padded, n_logits=width).logits[:n].copy()
        sequence.truncate(at + n)
        yield at, logits


def _log_law(logits: Floats) -> Any:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
