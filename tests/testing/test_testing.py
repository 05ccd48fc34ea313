"""The engine contract finds engines that are wrong: each of these breaks one promise, and some check fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pilotfish.runtime.errors import PilotfishError
from pilotfish.runtime.interfaces import EncoderInfo, Indices, Step
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.toy import ToyEncoderDecoderSession, ToySession, ToyWeights

WIDE = (*range(2, 18), 32, 33)


class KeepsWhatWasTruncated(ToySession):
    def truncate(self, n_tokens: int) -> None:
        super().truncate(n_tokens + 1 if n_tokens else 0)


class ForgetsOneTokenMore(ToySession):
    def truncate(self, n_tokens: int) -> None:
        super().truncate(n_tokens)
        self.entries = self.entries[: max(n_tokens - 1, 0)]


class RenumbersAfterEviction(ToySession):
    def keep(self, entries: Indices) -> None:
        super().keep(entries)
        self.entries = [replace(e, position=i) for i, e in enumerate(self.entries)]


class EvictsNothing(ToySession):
    def keep(self, entries: Indices) -> None:
        held = list(self.entries)
        super().keep(entries)
        self.entries = held


class SeesWhatIsLeftOut(ToySession):
    def attend(self, entries: Indices | None) -> None:
        super().attend(entries)
        self.unseen = frozenset()


class LeavesItOutForEver(ToySession):
    def attend(self, entries: Indices | None) -> None:
        if entries is not None:
            super().attend(entries)


class SiblingsSeeEachOther(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        if parents is None:
            return super().forward(tokens, n_logits=n_logits, observe=observe)
        settled = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        held, self.entries = self.entries, self.entries[: -len(tokens)]
        self.last_parents = []
        chained = super().forward(tokens, n_logits=n_logits, observe=observe)
        self.entries = held
        self.last_parents = [-1, *(int(p) for p in parents[1:])]
        return chained if len(tokens) > 4 else settled


class KeepsTheWholeTree(ToySession):
    def accept(self, rows: Indices) -> None:
        held = list(self.entries)
        super().accept(rows)
        self.entries = held[: len(self.entries)]


class IgnoresTheLimit(ToySession):
    def _check_step(self, tokens, n_logits, parents):  # type: ignore[no-untyped-def]
        limit, self.max_context = self.max_context, 10**6
        try:
            super()._check_step(tokens, n_logits, parents)
        finally:
            self.max_context = limit


class ChecksTooLate(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        try:
            return super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        except PilotfishError:
            self.entries = self.entries[:-1]
            raise


class AnswersForTheFirstRows(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=len(tokens), parents=parents, observe=observe)
        return Step(step.logits[:n_logits]) if 0 <= n_logits <= len(tokens) else step


class ReusesItsMemory(ToySession):
    _memory = np.zeros((256, 17), dtype=np.float32)  # of all sessions

    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        self._memory[:n_logits] = step.logits
        return Step(self._memory[:n_logits])


class LeaksIntoOthers(ToySession):
    _last: ClassVar[list[ToySession]] = []

    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        other = self._last[-1] if self._last else self
        if other is not self and other.weights is self.weights and other.entries:
            step = Step(step.logits + np.float32(0.001 * other.entries[-1].token))
        self._last[:] = [self]
        return step


class ForksShareTheirEntries(ToySession):
    def fork(self, *given: Any, **named: Any) -> ToySession:
        other = super().fork(*given, **named)
        other.entries = self.entries
        return other


class RestoresOnTop(ToySession):
    def restore(self, state: bytes) -> None:
        before = list(self.entries)
        super().restore(state)
        self.entries = before + self.entries


class RestoresAnything(ToySession):
    def restore(self, state: bytes) -> None:
        try:
            super().restore(state)
        except PilotfishError:
            self.entries = []


class SavesBadPositions(ToySession):
    def save(self) -> bytes:
        held, self.entries = self.entries, [replace(e, position=i) for i, e in enumerate(self.entries)]
        state = super().save()
        self.entries = held
        return state


class WorksWhenClosed(ToySession):
    def close(self) -> None:
        self.entries = []


class LooksOnlyAtTheLastTokens(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        held, self.entries = self.entries, self.entries[-64:]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        self.entries = held + self.entries[len(held[-64:]) :]
        return step


class NoiseInsideAClass(ToySession):
    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        return Step(step.logits + np.float32(1e-4)) if len(tokens) == 17 else step


class RowsChangeEachOther(ToySession):
    """As where one scale rounds all rows of a step."""

    def forward(self, tokens, *, n_logits, parents=None, observe=frozenset()):  # type: ignore[no-untyped-def]
        step = super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        return Step(step.logits + np.float32(1e-4) * np.float32(tokens[-1])) if len(tokens) > 1 else step


class RefusesWithoutAWayOut(ToySession):
    def keys_values(self, layer: int):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class ListsWhatItCannotDo(ToySession):
    def __init__(self, weights: ToyWeights, max_context: int) -> None:
        super().__init__(weights, max_context)
        self.abilities = self.abilities | {"evict_heads"}


class HoldsOneLess(ToySession):
    @property
    def nbytes(self) -> int:
        return 0


class KeepsTheCacheOfTheSourceBefore(ToyEncoderDecoderSession):
    def encode(self, source):  # type: ignore[no-untyped-def]
        held = list(self.entries)
        super().encode(source)
        self.entries = held


class ReadsOnlyOnce(ToyEncoderDecoderSession):
    def encode(self, source):  # type: ignore[no-untyped-def]
        held = self.source
        super().encode(source)
        self.source = held or self.source


class AddsToTheSourceBefore(ToyEncoderDecoderSession):
    def encode(self, source):  # type: ignore[no-untyped-def]
        held = self.source
        super().encode(source)
        self.source = held + self.source


class ForgetsTheSourceWithTheAnswer(ToyEncoderDecoderSession):
    def truncate(self, n_tokens: int) -> None:
        super().truncate(n_tokens)
        self.source = self.source if self.entries else self.source[:1]


class ForksReadForEachOther(ToyEncoderDecoderSession):
    _forked: ClassVar[list[ToySession]] = []

    def fork(self, *given: Any, **named: Any) -> ToySession:
        self._forked[:] = [self]
        return super().fork(*given, **named)

    def encode(self, source):  # type: ignore[no-untyped-def]
        super().encode(source)
        for other in self._forked:
            other.source = self.source


class TakesASourceWithoutAnEncoder(ToySession):
    def encode(self, source):  # type: ignore[no-untyped-def]
        self.entries = []


class SettlesBeforeItReads(ToyEncoderDecoderSession):
    def encode(self, source):  # type: ignore[no-untyped-def]
        if self.source:
            self._check_settled()
        super().encode(source)


class StepsWithoutASource(ToyEncoderDecoderSession):
    def _check_settled(self) -> None:
        ToySession._check_settled(self)


class SavesNoSource(ToyEncoderDecoderSession):
    def restore(self, state: bytes) -> None:
        held = self.source
        super().restore(state)
        self.source = held


class ForgetsTheSourceOfTrees(ToyEncoderDecoderSession):
    def accept(self, rows: Indices) -> None:
        super().accept(rows)
        self.source = self.source[:1]


class ReadsTooMuch(ToyEncoderDecoderSession):
    def encode(self, source):  # type: ignore[no-untyped-def]
        super().encode(source[:64])


BROKEN_READERS = [
    KeepsTheCacheOfTheSourceBefore,
    ReadsOnlyOnce,
    AddsToTheSourceBefore,
    ForgetsTheSourceWithTheAnswer,
    ForksReadForEachOther,
    ReadsTooMuch,
    TakesASourceWithoutAnEncoder,
    SettlesBeforeItReads,
    StepsWithoutASource,
    SavesNoSource,
    ForgetsTheSourceOfTrees,
]
BROKEN = [
    KeepsWhatWasTruncated,
    ForgetsOneTokenMore,
    RenumbersAfterEviction,
    EvictsNothing,
    SeesWhatIsLeftOut,
    LeavesItOutForEver,
    SiblingsSeeEachOther,
    KeepsTheWholeTree,
    IgnoresTheLimit,
    ChecksTooLate,
    AnswersForTheFirstRows,
    ReusesItsMemory,
    LeaksIntoOthers,
    ForksShareTheirEntries,
    RestoresOnTop,
    RestoresAnything,
    SavesBadPositions,
    WorksWhenClosed,
    LooksOnlyAtTheLastTokens,
    NoiseInsideAClass,
    RefusesWithoutAWayOut,
    ListsWhatItCannotDo,
    HoldsOneLess,
]


def subject(kind: type[ToySession]) -> Subject:
    class Weights(ToyWeights):
        def session(self, max_context: int | None = None) -> ToySession:
            made = super().session(max_context)
            return kind(self, made.max_context)

    encoder = EncoderInfo(decoder_start=(0,), source_limit=64) if issubclass(kind, ToyEncoderDecoderSession) else None
    return Subject(lambda: Weights(vocab_size=17, context_length=256, encoder=encoder), 0.0, ((1, *WIDE),))


def failures(kind: type[ToySession]) -> Iterator[str]:
    check: Callable[[Subject], None]
    for check in CHECKS:
        try:
            check(subject(kind))
        except (Exception, pytest.fail.Exception):
            yield check.__name__


@pytest.mark.parametrize("kind", BROKEN + BROKEN_READERS, ids=lambda kind: kind.__name__)
def test_a_broken_engine_is_found(kind: type[ToySession]) -> None:
    assert next(failures(kind), None) is not None


def test_the_engine_they_are_made_from_passes() -> None:
    assert list(failures(ToySession)) == list(failures(ToyEncoderDecoderSession)) == []


def test_failures_show_values(tmp_path: Path) -> None:
    """Assertions inside the installed package are rewritten, as those of a test file are."""
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n"
        "from pilotfish.testing import CHECKS, Subject\n"
        "from pilotfish.testing.toy import ToySession, ToyWeights\n"
        "class Bad(ToySession):\n"
        "    nbytes = 0\n"
        "class Weights(ToyWeights):\n"
        "    def session(self, max_context=None):\n"
        "        return Bad(self, super().session(max_context).max_context)\n"
        "@pytest.mark.parametrize('check', CHECKS, ids=lambda c: c.__name__)\n"
        "def test_mine(check):\n"
        "    check(Subject(lambda: Weights(vocab_size=5, context_length=256), 0.0))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), "-k", "rows_of_logits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 1 and "assert 0 > 0" in done.stdout, done.stdout
