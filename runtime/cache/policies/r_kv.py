"""Important entries stay, and of those that say the same only the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...interfaces import Ability, Floats
from .scorer import Scorer, stack
from .view import CacheView, softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class RKV(Scorer):
    """Weighs what the last `window` queries attend to against how much an entry's key repeats others.

    score = balance * importance - (1 - balance) * redundancy. Importance: attention, the largest of a group, averaged
    over the window. Redundancy: softmax of the mean cosine between keys, counted where it exceeds `alike`; the most
    recent of an entry's likes is not held against it. For long outputs that go in circles. Quadratic in the entries.
    Source: Cai et al. 2025, R-KV (window 8, balance 0.1, alike 0.5, every 128). Deviation: sinks always stay.
    """

    window: int = 8
    every: int = 128
    balance: float = 0.1
    alike: float = 0.5
    name = "rkv"
    reads: ClassVar[frozenset[Ability]] = frozenset({"attention", "keys"})

    @property
    def rows(self) -> int | None:
        return self.window

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for layer in range(view.info.n_layers):
            keys, _ = view.keys_values(layer)
            importance = sum(shares.max(axis=1).sum(axis=1) for shares in view.attention(layer)) / self.window
            redundancy = np.stack([self._redundancy(head) for head in keys])
            layers.append(self.balance * importance - (1.0 - self.balance) * redundancy)
        return stack(layers)

    def _redundancy(self, keys: Floats) -> Floats:
        """keys: (n, head_dim); (n,)"""
        unit = keys / np.maximum(np.linalg.norm(keys, axis=-1, keepdims=True), np.float32(1e-8))
        cosines: Floats = unit @ unit.T
        np.fill_diagonal(cosines, 0.0)
        similar = cosines > self.alike
        some = np.flatnonzero(similar.any(axis=1))
        latest = len(keys) - 1 - np.argmax(similar[some, ::-1], axis=1)
        cosines[some, latest] = 0.0
        return softmax((cosines * (cosines > self.alike)).mean(axis=0))
