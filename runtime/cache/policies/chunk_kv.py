"""Whole spans stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...interfaces import Floats, Indices
from .view import CacheView
from .wrapper import Wrapper


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkKV(Wrapper):
    """Keeps whole chunks of neighbours with the best mean score, the same ones in all layers and heads.

    Runs where only whole tokens can be dropped, and with few gaps.
    Source: Liu et al. 2025, ChunkKV (chunks of 20, scored as SnapKV does).
    """

    size: int = 20
    prefix: ClassVar[str] = "chunk-"

    def select(self, view: CacheView) -> Indices:
        scores = self.scorer.scores(view).sum(axis=(0, 1), dtype=np.float64)
        first, last = self.sinks, len(scores) - self.window
        kept = filling(best_chunks(scores, first, last, self.size), self.room)
        return np.sort(np.concatenate([np.arange(first), *kept, np.arange(last, len(scores))]))


def best_chunks(scores: Floats, first: int, last: int, size: int) -> list[Indices]:
    """The entries from first to last in chunks of neighbours, those with the best mean score first; ties: the older."""
    starts = np.arange(first, last, size)
    means = np.add.reduceat(scores[first:last], starts - first) / np.diff([*starts, last])
    ranked = starts[np.argsort(-means, kind="stable")]
    return [np.arange(start, min(start + size, last)) for start in ranked]


def filling(chunks: Iterable[Indices], room: int) -> list[Indices]:
    """As many of the chunks as it takes to fill the room; the last one taken is cut, so that it is used up."""
    taken = []
    for chunk in chunks:
        if room <= 0:
            break
        taken.append(chunk[:room])
        room -= len(chunk)
    return taken
