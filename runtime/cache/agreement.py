"""How often two caches say the same, and what of that can be relied on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..interfaces.distribution import Distribution

ERROR = 0.05  # chance that a bound is ever wrong
_ODDS = np.array([2.0, 8.0, 32.0, 128.0])  # bets on how rare disagreement is
_BISECTIONS = 30


def overlap(p: Distribution, q: Distribution) -> float:
    """1 - TV: the chance that a token drawn from q would be accepted as one of p."""
    if p.ids is None:
        return float(np.minimum(p.probs, q.dense(len(p.probs))).sum())
    if q.ids is None:
        return float(np.minimum(p.probs, q.probs[p.ids]).sum())
    _, ours, theirs = np.intersect1d(p.ids, q.ids, assume_unique=True, return_indices=True)
    return float(np.minimum(p.probs[ours], q.probs[theirs]).sum())


@dataclass(slots=True)
class Agreement:
    """The overlap of the distributions of n tokens, in sum, and bounds on its mean that may be looked at as often as
    one likes.

    What is bounded is the mean, over these tokens, of the overlap that was to be expected given the text before each:
    tokens need not be independent. It is a statement about the text that was seen.

    Source: betting against a mean (Waudby-Smith and Ramdas 2024). Where the expected overlaps m have at most a mean of
    t, odds^total / (1 + t (odds - 1))^n has an expectation of at most 1 by the concavity of the logarithm, and exceeds
    1 / ERROR at any time with a chance of at most ERROR (Ville); so does the average over several odds.
    """

    total: float = 0.0
    n: int = 0

    def add(self, share: float) -> None:
        """One token more."""
        self.total += share
        self.n += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    @property
    def at_least(self) -> float:
        """The mean is no less than this, with a confidence of 1 - ERROR."""
        return _lower(self.total, self.n)

    @property
    def at_most(self) -> float:
        """The mean is no more than this, with a confidence of 1 - ERROR."""
        return 1.0 - _lower(self.n - self.total, self.n)


def _lower(total: float, n: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        logs = total * np.log(_ODDS) - n * np.log1p(middle * (_ODDS - 1.0))
        top = float(logs.max())
        known = top + math.log(float(np.exp(logs - top).mean())) >= -math.log(ERROR)
        low, high = (middle, high) if known else (low, middle)
    return low
