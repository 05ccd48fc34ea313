"""What one row of `pilotfish bench cache` takes: a text, needles and timed steps, over one kind of cache."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import TypeAlias

import numpy as np

from ...runtime.cache.compression import CompressedCache, entries_for
from ...runtime.cache.selection import SelectiveCache
from ...runtime.cache.sequence import CachedSequence
from ...runtime.decoding.scoring import logits_along
from ...runtime.errors import OptionError
from ...runtime.interfaces import Floats, Tokens, Weights
from ...runtime.model.model import Model
from ...runtime.profiling.row_classes import RowRule
from ...runtime.sampling.log_softmax import log_softmax
from .inputs import Haystack, Settings, haystack, sized_policy

FULL = "full"  # the name of no policy
_STEPS = 9  # timed at the end of the text, in turns with the full cache
_ROOM = 64  # entries beside the text: a wide step
Found: TypeAlias = tuple[tuple[tuple[int, float, float], ...], tuple[tuple[int, float], ...]]
"""Shares of what was sought: (length, depth, share) of one number each, and (length, share) of several"""


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one size. *_full: of a full cache of the same type beside it, ceiling: of one of no more entries.

    All losses are against the full cache in the engine's exact type.
    """

    kv_dtype: str | None  # None: the engine's exact type
    policy: str
    share: str | None  # of the text's entries; None: the policy names its budget
    entries: int  # at most
    perplexity: float
    perplexity_exact: float
    kl: float  # nats a token, of the exact distribution to this one
    agreement: float  # share of places at which both find the same token most probable
    needles: tuple[tuple[int, float, float], ...]  # length, depth, share of the number's tokens that were found
    keys: tuple[tuple[int, float], ...]  # length, share of the tokens of several numbers that were found
    kv_bytes: int
    kv_bytes_full: int
    step_ms: float
    step_ms_full: float
    step_ms_ceiling: float
    prompt_s: float  # the text but what is predicted
    prompt_s_full: float
    select_s: float  # of prompt_s, choosing and moving entries
    tokens_per_s: float  # steps and their part of the selecting
    command: str
    made_by: str  # model, engine and settings: what a kept row must agree in


@dataclass(slots=True)
class ExactDistribution:
    """What the full cache in the exact type says at the text's end."""

    log_distribution: Floats | None = None  # (predicted, vocab_size), the last row has no successor
    perplexity: float = 0.0


class Bench:
    """Weights with one type of cache, the text, and the full cache beside which everything is measured."""

    def __init__(
        self, model: Model, text: str, settings: Settings, exact: ExactDistribution, tell: Callable[[str], None]
    ) -> None:
        """tell: is told what is being done. Raises OptionError for a text that does not fit."""
        self._settings, self._exact, self._tell = settings, exact, tell
        self._weights: Weights = model.target
        self._rows: RowRule = model.calibration.rows.rule()
        tokens = model.encode(text, raw=True)
        longest = max(settings.length, *settings.needle_lengths, 0)
        limit = min(model.info.context_length - _ROOM, len(tokens))
        if settings.length < 64 or longest > limit:
            raise OptionError(
                f"--length and --needle-lengths must lie in 64..{limit}: the model knows {model.info.context_length} "
                f"positions and the text has {len(tokens)} tokens; --text takes a longer one."
            )
        self._tokens = tokens[: settings.length]
        self._hidden = [
            (n, i / max(settings.depths - 1, 1), self._hide(model, tokens, n, [i / max(settings.depths - 1, 1)], i))
            for n in settings.needle_lengths
            for i in range(settings.depths)
        ]
        spread = [(i + 0.5) / settings.keys for i in range(settings.keys)]
        self._keys = [
            (n, self._hide(model, tokens, n, spread, settings.depths))
            for n in (settings.needle_lengths if settings.keys else ())
        ]
        self._full = CachedSequence(self._weights.session(longest + _ROOM), self._rows)
        self._full_prompt_s = 0.0

    def _hide(self, model: Model, tokens: Tokens, n: int, depths: list[float], i: int) -> Haystack:
        return haystack(model.tokenizer, tokens, n, depths, seed=31 * n + i)

    def full(self, kv_dtype: str | None, needles: bool, command: str, made_by: str) -> Row:
        """The full cache itself, which covers the text afterwards. Comes first: the first one of all is the exact
        distribution.

        needles: whether they are looked for, too.
        """
        self._tell("reading the text")
        self._full_prompt_s = self._read(self._full)
        distribution = self._distribution(self._full)
        step_ms = self._steps([self._full])[0]
        size = self._full.session.nbytes
        found = self._needles_of_full() if needles else ((), ())
        return Row(
            kv_dtype, FULL, "1", self._settings.length, *distribution, *found, size, size, step_ms, step_ms, step_ms,
            self._full_prompt_s, self._full_prompt_s, 0.0, 1e3 / step_ms, command, made_by,
        )  # fmt: skip

    def row(self, kv_dtype: str | None, name: str, share: Fraction | None, command: str, made_by: str) -> Row:
        """share: None where the policy is run as it is named. Raises AbilityError where the engine cannot run it."""
        length = self._settings.length
        with self._sized(name, length, share) as sequence:
            chooser = sequence.mode
            assert isinstance(chooser, CompressedCache | SelectiveCache)
            self._tell("reading the text")
            prompt_s = self._read(sequence)
            select_s, limit = chooser.seconds, chooser.limit
            distribution = self._distribution(sequence)
            chosen_over = length if chooser.bounded else self._settings.predicted  # prompts are seen whole there
            selecting_ms = 1e3 * chooser.seconds / chosen_over
            sizes = sequence.session.nbytes, self._full.session.nbytes  # before another session takes part in a pool
            step_ms, full_ms, ceiling_ms = self._steps([sequence, self._full], sequence.n_seen)
        found = self._needles(lambda n: self._sized(name, n, share))
        return Row(
            kv_dtype, name, None if share is None else str(share), limit, *distribution, *found, *sizes,
            step_ms, full_ms, ceiling_ms, prompt_s, self._full_prompt_s, select_s,
            1e3 / (step_ms + selecting_ms), command, made_by,
        )  # fmt: skip

    def close(self) -> None:
        self._full.session.close()

    def _read(self, sequence: CachedSequence) -> float:
        began = time.perf_counter()
        sequence.cover(self._tokens[: len(self._tokens) - self._settings.predicted])
        return time.perf_counter() - began

    def _distribution(self, sequence: CachedSequence) -> tuple[float, float, float, float]:
        """Perplexity of the text's end with this and with the exact cache, KL and agreement."""
        self._tell("predicting its end")
        first = len(self._tokens) - self._settings.predicted
        exact, known = self._exact, self._exact.log_distribution
        shape = (self._settings.predicted, sequence.session.info.vocab_size)
        held = np.empty(shape, dtype=np.float32) if known is None else known
        loss = kl = same = 0.0
        for at, logits in logits_along(sequence, self._tokens, first, self._rows.maximum):
            ours = log_softmax(logits)
            if known is None:
                held[at - first : at - first + len(ours)] = ours
            after = self._tokens[at + 1 : at + 1 + len(logits)]
            rows = np.arange(len(after))
            theirs = ours if known is None else held[at - first : at - first + len(ours)].astype(np.float64)
            loss -= float(ours[rows, after].sum())
            kl += float((np.exp(theirs) * (theirs - ours))[rows].sum())
            same += float((ours.argmax(axis=1) == theirs.argmax(axis=1))[rows].sum())
        n = self._settings.predicted - 1
        perplexity = math.exp(loss / n)
        if known is None:
            exact.log_distribution, exact.perplexity = held, perplexity
        return perplexity, exact.perplexity, kl / n, same / n

    def _steps(self, sequences: list[CachedSequence], ceiling: int | None = None) -> list[float]:
        """Median ms of the narrowest step of each, and of a full cache with `ceiling` entries; in turns."""
        self._tell("timing steps")
        contestants = list(sequences)
        if ceiling is not None:
            contestants.append(CachedSequence(self._weights.session(ceiling + _ROOM), self._rows))
            contestants[-1].cover(self._tokens[:ceiling])
        times: list[list[float]] = [[] for _ in contestants]
        for _ in range(_STEPS):
            for taken, one in zip(times, contestants, strict=True):
                n = len(one.tokens)
                began = time.perf_counter()
                one.session.forward(self._tokens[: self._rows.minimum], n_logits=self._rows.minimum)
                taken.append(1e3 * (time.perf_counter() - began))
                one.session.truncate(n)
        if ceiling is not None:
            contestants[-1].session.close()
        return [median(x) for x in times]

    def _needles_of_full(self) -> Found:
        """As the others', but each text goes on from what it has in common with the one before: the deepest first."""
        session, covered = self._full.session, self._full.tokens.copy()
        if "fork" in session.abilities:
            one = CachedSequence(session.fork(), self._rows, covered=covered)
        else:
            one = CachedSequence(self._weights.session(session.max_context), self._rows)
        try:
            return self._needles(lambda n: contextlib.nullcontext(one))
        finally:
            one.session.close()

    def _needles(self, sequence_for: Callable[[int], AbstractContextManager[CachedSequence]]) -> Found:
        """What is found of single needles, by length and depth, and of several, by length."""
        single, several = [], []
        for i, (n, depth, hay) in enumerate(reversed(self._hidden)):
            self._tell(f"needle {i + 1} of {len(self._hidden)}")
            with sequence_for(n) as sequence:
                single.append((n, depth, _found(sequence, hay)))
        for n, hay in self._keys:
            self._tell(f"{self._settings.keys} numbers in {n} tokens")
            with sequence_for(n) as sequence:
                several.append((n, _found(sequence, hay)))
        return tuple(reversed(single)), tuple(several)

    @contextlib.contextmanager
    def _sized(self, name: str, length: int, share: Fraction | None) -> Iterator[CachedSequence]:
        """An empty cache of at most that share of the entries. Raises AbilityError where the engine cannot run it."""
        policy = sized_policy(name, None if share is None else int(length * share))
        session = self._weights.session(entries_for(policy, self._rows, self._weights.info))
        try:
            yield CachedSequence(session, self._rows, policy)
        finally:
            session.close()


def _found(sequence: CachedSequence, hay: Haystack) -> float:
    """Share of the sought tokens that are found, each after the right ones before it."""
    right = 0
    for at, logits in logits_along(sequence, hay.tokens, int(hay.sought[0]) - 1, sequence.rows.maximum):
        best = logits.argmax(axis=1)
        asked = hay.sought[(hay.sought > at) & (hay.sought <= at + len(best))]
        right += int((best[asked - 1 - at] == hay.tokens[asked]).sum())
    return right / len(hay.sought)
