"""Entries that stand out from those that follow them stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...interfaces import Floats
from .scorer import Scorer, stack
from .view import CacheView, softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class LagKV(Scorer):
    """Scores keys and values by how far they spread, measured against the range of the partition behind theirs.

    The entries between the sinks and the last `window` ones are cut into partitions of `lag`. Each is scaled by the
    smallest and largest value of every channel in the next one; the standard deviation over channels, softmaxed over
    the partition, is the score; keys' and values' are averaged. Needs no queries.
    Source: Liang et al. 2025, LagKV (4 sinks, lag 128). Deviations: what stayed is scored again with what came later,
    so that a budget holds (the paper compresses every partition once and grows), and ranks compete over all partitions.
    """

    lag: int = 128
    window: int = 128
    name = "lagkv"

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for keys, values in view.layers_keys_values():
            layers.append((self._spread(keys) + self._spread(values)) / np.float32(2.0))
        return stack(layers)

    def _spread(self, x: Floats) -> Floats:
        """x: (kv_heads, n, head_dim); (kv_heads, n) scores, 0 for sinks and window."""
        scores = np.zeros(x.shape[:2], dtype=np.float32)
        end = x.shape[1] - self.window
        for start in range(self.sinks, end, self.lag):
            stop = min(start + self.lag, end)
            following = x[:, stop : stop + self.lag]
            low, high = following.min(axis=1, keepdims=True), following.max(axis=1, keepdims=True)
            scaled = (x[:, start:stop] - low) / np.maximum(high - low, np.float32(1e-6))
            scores[:, start:stop] = softmax(scaled.std(axis=-1)) * np.float32(stop - start)  # 1 on average
        return scores
