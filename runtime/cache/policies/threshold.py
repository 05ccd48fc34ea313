"""What falls below a threshold goes, however much that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...interfaces import Indices
from .view import CacheView
from .wrapper import Wrapper


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdBudget(Wrapper):
    """Keeps the tokens whose mean score over layers and heads reaches a threshold, and never more than the budget.

    threshold: on the scale of the scorer's own scores. A text with little in it is cut down further than one with much:
        the budget is only the most that stays.
    Source: the rule of DMS (Lancucki et al. 2025) and KVzap at inference: what has left the window and scores below the
    threshold is evicted. Deviations: tokens are dropped for all heads at once, because heads of a cache are equally
    long; every `every` tokens and not at each; their trained scores are replaced by any scorer's.
    """

    threshold: float
    prefix: ClassVar[str] = "threshold-"

    def select(self, view: CacheView) -> Indices:
        scores = self.scorer.scores(view).mean(axis=(0, 1), dtype=np.float64)
        first, last = self.sinks, len(scores) - self.window
        middle = scores[first:last]
        best = np.argsort(-middle, kind="stable")[: self.room]
        reached = best[middle[best] >= self.threshold] + first
        return np.sort(np.concatenate([np.arange(first), reached, np.arange(last, len(scores))]))
