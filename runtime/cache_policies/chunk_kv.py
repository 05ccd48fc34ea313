"""Whole spans stay."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import OptionError
from ..interfaces import Ability, Indices
from .scorer import Scorer
from .snapkv import SnapKV
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkKV:
    """Keeps whole chunks of neighbours with the best mean score, the same ones in all layers and heads.

    scorer: who scores; its budget, sinks and window hold. Runs where only whole tokens can be dropped, and with few
    gaps. Source: Liu et al. 2025, ChunkKV (chunks of 20, scored as SnapKV does).
    """

    scorer: Scorer = field(default_factory=SnapKV)
    size: int = 20

    def __post_init__(self) -> None:
        if self.size < 1:
            raise OptionError(f"size is {self.size}, but a chunk has 1 entry or more.")

    @property
    def name(self) -> str:
        return f"chunk-{self.scorer.name}"

    @property
    def needs(self) -> frozenset[Ability]:
        return (self.scorer.needs - {"evict_heads"}) | {"evict_tokens"}

    @property
    def budget(self) -> int:
        return self.scorer.budget

    @property
    def every(self) -> int:
        return self.scorer.every

    @property
    def window(self) -> int:
        return self.scorer.window

    @property
    def rows(self) -> int | None:
        return self.scorer.rows

    def select(self, view: CacheView) -> Indices:
        scores = self.scorer.scores(view).sum(axis=(0, 1), dtype=np.float64)
        first, last = self.scorer.sinks, len(scores) - self.window
        starts = np.arange(first, last, self.size)
        means = np.add.reduceat(scores[first:last], starts - first) / np.diff([*starts, last])
        kept, room = [np.arange(first), np.arange(last, len(scores))], self.budget - first - self.window
        for chunk in np.argsort(-means, kind="stable"):  # the last one taken is cut, so that the budget is used up
            span = np.arange(starts[chunk], min(starts[chunk] + self.size, last))[:room]
            kept.append(span)
            room -= len(span)
        return np.sort(np.concatenate(kept))
