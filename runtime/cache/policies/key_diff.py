"""Keys unlike the others stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...interfaces import Floats
from .scorer import Scorer, stack
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDiff(Scorer):
    """Keeps the entries whose keys are least like the mean of all normalised keys.

    score = -cos(key, mean of key / |key|). Source: Park et al. 2025, KeyDiff.
    """

    name = "keydiff"

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for keys, _ in view.layers_keys_values():
            # No array as large as the keys is made, and einsum starts no threads, which would wait for the engine's.
            size = np.sqrt(np.einsum("hnd,hnd->hn", keys, keys))
            inverse = 1.0 / np.maximum(size, np.float32(1e-12))
            mean = np.einsum("hn,hnd->hd", inverse, keys)
            mean /= np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), np.float32(1e-12))
            layers.append(-np.einsum("hnd,hd->hn", keys, mean) * inverse)
        return stack(layers)
