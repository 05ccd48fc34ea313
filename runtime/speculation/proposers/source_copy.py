"""Copies of the source: what an encoder-decoder model that corrects, simplifies or edits is about to write.

After input-guided aggressive decoding (Ge et al. 2022, 2205.10350), which copies on from the place where the last one
to three tokens of the output stand in the source, once they stand there only once. Here the place is known all the
time: the output is aligned with the source by edit distance, token by token, so that copying goes on in the round after
an edit. On texts with random misspellings that is worth 1.5 to 1.7 times as many tokens a round. Sets of places are the
bits of whole numbers, so a token takes a few operations on numbers, however long the source is (Wu and Manber 1992).
An answer that stays in doubt is not followed any longer: its last few tokens are looked up, as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from operator import eq, mul

import numpy as np

from ...interfaces import EMPTY_DRAFT, Budget, Draft, Probs, Proposer, Tokens

_JUMP = 4  # edits that going on anywhere else in the source is worth
_LOST = (2, 10)  # tokens in doubt after which the place is not known any more: before the first copies, and after them,
_FOUND = 5  # and so many in a row that stand in the source tell it again
_FLOOR = 0.1  # a path less likely than this is not followed,
_SILENT = 0.35  # and with a next token less likely than this nothing is said: edits come in clusters
_EVIDENCE = 2  # copies in a row, at a place without doubt, before which nothing is said: a wrong draft takes long
_MEMORY = 0.98  # what an old copy is worth after one more token
_NEW, _NEAR, _COPY = range(3)  # the last token stands nowhere near its place, stands near it, or at it
_PRIOR = ((1.0, 1.0), (1.0, 1.0), (0.5, 4.5))  # tokens after each that were no copies, and that were
_MEMORY_OF_ANSWERS = 0.95  # and what one after an edit is worth after one more, over many answers,
_PRIOR_MASS = 4.0  # which count as so many in the next


@dataclass(slots=True)
class _Habit:
    """What answers have in common. copies: whether the last one that showed it copied its source; counts: as _PRIOR, of
    many answers: how texts go on after an edit is a matter of what they are corrected for, and one has few edits."""

    copies: bool = False
    counts: list[list[float]] = field(default_factory=lambda: [list(row) for row in _PRIOR])


@dataclass(frozen=True, slots=True)
class SourceCopy:
    """Drafts by going on in the source. Deterministic, so drafts are one-hot; without a source there is none."""

    name: str = "source-copy"
    _habit: _Habit = field(default_factory=_Habit, repr=False, compare=False)

    def reading(self, source: Tokens, start: int) -> Proposer:
        return _Copying(self.name, source, start, self._habit)

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        return EMPTY_DRAFT


class _Copying:
    """One answer, aligned with its source.

    Whether a token would have been guessed is counted whether or not it was drafted, so the stated chances follow the
    text even while nothing is drafted. Plain ints and floats: of a handful they are faster than arrays, and a small
    model's step is as short as a few array operations.
    """

    def __init__(self, name: str, source: Tokens, start: int, habit: _Habit) -> None:
        self.name, self._habit = name, habit
        self._source = source
        self._alignment = Alignment(source.tolist())
        self._text = _text(source.tolist())
        self._seen = start  # length of the context that is aligned
        self._counts = [[c * min(1.0, _PRIOR_MASS / sum(row)) for c in row] for row in habit.counts[:_COPY]]
        self._counts.append(list(_PRIOR[_COPY]))
        self._last = _COPY  # what the last token was
        self._copies = False  # whether this answer is known to copy
        self._lost = False  # whether its place is not known any more

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """The source from the place that the output has reached."""
        if not self._lost:
            self._follow(context[self._seen :].tolist())
        if self._lost:
            self._find(context)
        self._seen = len(context)
        if self._lost or not (self._copies or self._habit.copies):
            return EMPTY_DRAFT
        first, then = self._chance(self._last), self._chance(_COPY)
        at = self._alignment.at
        k = min(budget.max_tokens, len(self._source) - at)
        if k < 1 or first < _SILENT:
            return EMPTY_DRAFT
        k = min(k, 1 + int(math.log(_FLOOR / first) / math.log(then)))
        expected: Probs = np.fromiter(accumulate(repeat(then, k - 1), mul, initial=first), np.float64, k)
        return Draft(self._source[at : at + k], expected=expected)

    def _find(self, context: Tokens) -> None:
        """Look for the last few tokens alone, however many came before them: while nothing is copied that has to be
        quick, and exact enough that a place found by chance is rare."""
        tail = context[-_FOUND:].tolist()
        at = self._text.find(_text(tail))
        if at >= 0:
            self._alignment.place(at + len(tail), len(tail))
            self._last, self._copies = _COPY, True
            self._lost = False

    def _chance(self, last: int) -> float:
        no, yes = self._counts[last]
        return yes / (no + yes)

    def _follow(self, tokens: list[int]) -> None:
        """Align tokens that were committed."""
        alignment, i = self._alignment, 0
        while i < len(tokens):
            run = alignment.run(tokens, i)
            if run:
                self._count(run)
                alignment.copy(tokens[i : i + run])
                if alignment.straight >= _EVIDENCE and not alignment.doubtful:
                    self._copies = self._habit.copies = True
            i += run
            if i < len(tokens):
                self._learn(False)
                self._lost = alignment.doubtful >= _LOST[self._copies]
                if self._lost:
                    self._habit.copies = self._copies
                    return
                alignment.edit(tokens[i])
                self._last = _NEAR if alignment.near else _NEW
                i += 1

    def _count(self, run: int) -> None:
        """So many copies in a row."""
        self._learn(True)
        self._last = _COPY
        counts, kept = self._counts[_COPY], _MEMORY ** (run - 1)
        counts[0] *= kept
        counts[1] = counts[1] * kept + (1.0 - kept) / (1.0 - _MEMORY)

    def _learn(self, hit: bool) -> None:
        learnt = [(self._counts[self._last], _MEMORY)]
        if self._last != _COPY:
            learnt.append((self._habit.counts[self._last], _MEMORY_OF_ANSWERS))
        for counts, kept in learnt:
            counts[0] *= kept
            counts[1] *= kept
            counts[hit] += 1.0


class Alignment:
    """Where in the source the output has got to, token by token.

    Costs are edit distances between the output and every beginning of the source, less the smallest one, and never
    more than a jump. Only places that cost less than a jump are held, and those that hardly do only while they copy.
    """

    def __init__(self, source: list[int]) -> None:
        self._source = source
        self._every = (2 << len(source)) - 1  # all places: before each token, and behind the last
        self._places: dict[int, int] = {}  # where each token stands
        for i, token in enumerate(source):
            self._places[token] = self._places.get(token, 0) | 1 << i
        self.at = 0
        self.straight = 0  # copies in a row
        self.doubtful = 0  # tokens since it was clear where they come from
        self.near = True  # whether the last token stands before this place
        self._within = [0] * _JUMP  # bit p of number c: place p costs c at most; stale while there is no doubt

    def run(self, tokens: list[int], start: int) -> int:
        """How many of the tokens from `start` on are copies from here on."""
        goes_on = self._source[self.at : self.at + len(tokens) - start]
        same = list(map(eq, tokens[start:], goes_on))
        return len(same) if all(same) else same.index(False)

    def copy(self, tokens: list[int]) -> None:
        """The output went on with these tokens of the source."""
        self.straight += len(tokens)
        if self.doubtful and self.straight < _JUMP:
            for token in tokens:
                self._step(token)
        else:
            self.place(self.at + len(tokens), self.straight)

    def place(self, at: int, straight: int) -> None:
        """The output has got to this place for certain, after so many copies."""
        self.at, self.straight, self.doubtful = at, straight, 0

    def edit(self, token: int) -> None:
        """The output went on with something else."""
        if not self.doubtful:
            first = max(self.at - _JUMP + 1, 0)
            for cost in range(_JUMP):
                low = max(self.at - cost, first)
                self._within[cost] = (1 << self.at + cost + 1) - (1 << low) & self._every
        self._step(token)
        self.straight = 0

    def _step(self, token: int) -> None:
        """One token more: the next costs, and the place that explains it best."""
        self.doubtful += 1
        stands, before = self._places.get(token, 0), self._within
        copies = stands << 1
        after = [(before[0] & stands) << 1]  # the token is the source's,
        for cost in range(1, _JUMP):  # was added, or replaced it,
            after.append((before[cost] & stands) << 1 | before[cost - 1] | before[cost - 1] << 1)
        if not after[0]:  # or was copied from anywhere
            after = [*after[1:], before[-1] | before[-1] << 1 | copies]
        for cost in range(1, _JUMP):  # tokens of the source were left out
            after[cost] |= after[cost - 1] << 1
        after[-1] = after[-2] | after[-1] & copies
        self._within = [places & self._every for places in after]
        best = self._within[0]
        self.near = bool(best & copies)
        self.at = _nearest(best & copies or best, self.at + 1)


def _text(tokens: list[int]) -> str:
    """One character for each token: strings are searched faster than lists."""
    return "".join(map(chr, tokens))


def _nearest(places: int, to: int) -> int:
    """The place of these, at least one, that is nearest; the earlier one of two."""
    later, earlier = places >> to, places & (1 << to) - 1
    behind = (later & -later).bit_length() - 1 + to
    before = earlier.bit_length() - 1
    if not later or (earlier and to - before <= behind - to):
        return before
    return behind
