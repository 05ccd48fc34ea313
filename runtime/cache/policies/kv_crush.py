"""A part of the budget goes to samples of what the scores would give up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import OptionError
from ...interfaces import Floats, Indices
from .chunk_kv import best_chunks, filling
from .view import CacheView
from .wrapper import Wrapper

ANCHORS = ("alternating", "zeros", "ones", "mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCrush(Wrapper):
    """Keeps whole chunks with the best mean score, and of those that this leaves out evenly spaced representatives.

    A chunk's signature has a bit for each entry: whether its score is in the upper half of all. Chunks left out are
    sorted by how many bits differ from the anchor, and taken from that row at even distances.
    share: of the room between sinks and window, for representatives, in whole chunks. anchor: one of ANCHORS; the mean
        is the majority of all chunks' bits.
    Source: Jha et al. 2025, KVCrush, in the form that OpenVINO gave it (blocks of 32). Deviations: one selection for
    all layers, as in ChunkKV; no random anchor, because the selection must follow from the cache alone.
    """

    size: int = 32
    share: float = 0.25
    anchor: str = "alternating"
    prefix: ClassVar[str] = "crush-"

    def __post_init__(self) -> None:
        Wrapper.__post_init__(self)
        if not 0.0 < self.share < 1.0 or self.representatives < 1:
            raise OptionError(
                f"a share of {self.share} of {self.room} entries between sinks and window must lie between 0 and 1 "
                f"and hold a chunk of {self.size}; give a larger share or budget, or smaller chunks."
            )
        if self.anchor not in ANCHORS:
            raise OptionError(f"anchor is {self.anchor!r}, but must be one of {', '.join(ANCHORS)}.")

    @property
    def representatives(self) -> int:
        """Chunks that are kept as samples of the rest."""
        return int(self.room * self.share) // self.size

    def select(self, view: CacheView) -> Indices:
        scores = self.scorer.scores(view).sum(axis=(0, 1), dtype=np.float64)
        first, last = self.sinks, len(scores) - self.window
        chunks = best_chunks(scores, first, last, self.size)
        best = filling(chunks, self.room - self.representatives * self.size)
        left = np.sort([chunk[0] for chunk in chunks[len(best) :] if len(chunk) == self.size]).astype(np.int64)
        distances = self._distances(scores[first:last])[(left - first) // self.size]
        ranked = left[np.argsort(distances, kind="stable")]
        n = min(self.representatives, len(ranked))
        sampled = [np.arange(start, start + self.size) for start in ranked[:: len(ranked) // max(n, 1) or 1][:n]]
        return np.sort(np.concatenate([np.arange(first), *best, *sampled, np.arange(last, len(scores))]))

    def _distances(self, scores: Floats) -> Indices:
        """Of every whole chunk: how many bits of its signature differ from the anchor's."""
        n = len(scores) // self.size
        bits = np.zeros(n * self.size, dtype=np.int64)
        bits[np.argsort(-scores[: n * self.size], kind="stable")[: n * self.size // 2]] = 1
        signatures = bits.reshape(n, self.size)
        anchor = {
            "alternating": np.arange(self.size) % 2,
            "zeros": np.zeros(self.size),
            "ones": np.ones(self.size),
            "mean": signatures.mean(axis=0) > 0.5,
        }[self.anchor]
        return np.asarray((signatures != anchor).sum(axis=1))
