"""Row classes: which widths of a forward pass give the same bits.

Kernels change with the number of rows, and with int8 activations the bits then change visibly. But widths fall into
classes inside which every row comes out bitwise equal (mostly "one row" and "two and more"). Staying in one class makes
plain and speculative decoding the same computation, so that their equality is a fact and not luck.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from ..interfaces import Floats, ModelInfo, Tokens

_DEAR = 1.15  # times a step of one row: below that, a guess in every step brings more than narrow steps save
_TINY_S = 2e-3
MAX_WIDTH = 33  # widest decode step: 32 drafts and the row before them
PROBED_WIDTHS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33)


@dataclass(frozen=True, slots=True)
class RowRule:
    """The widths a generation may use, ascending; a step is padded to the next of them."""

    widths: tuple[int, ...]
    trees: bool = True  # whether a tree may be verified: its bits are those of no chain

    @property
    def minimum(self) -> int:
        return self.widths[0]

    @property
    def maximum(self) -> int:
        return self.widths[-1]

    def fit(self, n_rows: int) -> int:
        """The smallest allowed width of at least n_rows."""
        at = bisect_left(self.widths, n_rows)
        if at == len(self.widths):
            raise ValueError(f"no allowed width holds {n_rows} rows; the widest is {self.maximum}")
        return self.widths[at]

    def pad(self, tokens: Tokens) -> Tokens:
        """The tokens of a step, the last one repeated up to an allowed width; more than any holds are as they are."""
        n = len(tokens)
        spare = 0 if n > self.maximum else self.fit(n) - n
        return np.concatenate([tokens, np.full(spare, tokens[-1])])

    def floor(self, n_rows: int) -> int | None:
        """The largest allowed width of at most n_rows, or None."""
        at = bisect_right(self.widths, n_rows)
        return self.widths[at - 1] if at else None


ANY_WIDTH = RowRule(tuple(range(1, MAX_WIDTH + 1)))


@dataclass(frozen=True, slots=True)
class RowClasses:
    """Probed widths, grouped into classes with bitwise-equal logits.

    ladder: ModelInfo.widths, of an engine that runs no others; () runs any.
    widest: rows of a step of which all but the first can be taken back.
    """

    classes: tuple[tuple[int, ...], ...]
    ladder: tuple[int, ...] = ()
    widest: int = MAX_WIDTH

    @property
    def drafts(self) -> bool:
        """Whether there is a width with room for a draft whose rows are what they would be in any other step."""
        return self.rule().maximum > 1

    def free(self) -> RowRule:
        """Every width the engine runs, whatever its bits."""
        return RowRule(self.ladder) if self.ladder else RowRule(ANY_WIDTH.widths[: self.widest])

    def rule(self) -> RowRule:
        """The widths of the class to stay in: the one with the narrowest step among those with room for a draft.

        Where no two widths agree, every step has one and the same width, the narrowest that has room for a draft.

        Between two neighbouring probed widths of one class every width is taken to belong to it: kernels change at
        thresholds and at multiples, and both are probed. Of a ladder every width is probed, and there are no others.
        """
        roomy = [c for c in self.classes if len(c) > 1] or [c for c in self.classes if c[0] > 1] or list(self.classes)
        best = min(roomy, key=lambda c: c[0])
        if self.ladder:
            return RowRule(tuple(sorted(best)), trees=False)
        probed = sorted(w for c in self.classes for w in c)
        widths = set(best)
        for low, high in itertools.pairwise(probed):
            if low in best and high in best:
                widths.update(range(low, high))
        return RowRule(tuple(sorted(widths)), trees=False)


def narrow_pays(one_s: float | None, narrowest_s: float | None, switch_s: float) -> bool:
    """Whether steps of one row are so much cheaper than the narrowest with room for a draft that text which repeats
    nothing is better said in them. Not of tiny models, where other things take the time, nor where a change of width
    costs all that is saved, nor on an engine that runs no such steps."""
    if one_s is None or narrowest_s is None or one_s < _TINY_S:
        return False
    return narrowest_s >= _DEAR * one_s and narrowest_s - one_s > switch_s


def widest_of(info: ModelInfo) -> int:
    """Rows of the widest decode step: what is not accepted of it has to be forgotten."""
    return MAX_WIDTH if info.rewinds is None else min(info.rewinds + 1, MAX_WIDTH)


def classify(
    logits_by_width: dict[int, Floats], ladder: tuple[int, ...] = (), alike_from: int = 1, widest: int = MAX_WIDTH
) -> RowClasses:
    """Classes of widths whose logits agree bitwise on the rows they share.

    logits_by_width: for each width, logits (n, vocab_size) of the same tokens, run in steps of that width.
    alike_from: ModelInfo.alike_from: a narrower width is a class of its own, whatever was seen.
    """
    classes: list[list[int]] = []
    for width, logits in sorted(logits_by_width.items()):
        for members in (members for members in classes if members[0] >= alike_from):
            other = max((logits_by_width[m] for m in members), key=len)
            n = min(len(logits), len(other))
            if np.array_equal(logits[:n], other[:n]):
                members.append(width)
                break
        else:
            classes.append([width])
    return RowClasses(tuple(tuple(c) for c in classes), ladder, widest)
