"""What was attended to most stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...interfaces import Ability, Floats
from .scorer import Scorer, stack
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class H2O(Scorer):
    """Keeps the entries that all queries since they came attended to most, in sum.

    Source: Zhang et al. 2023, H2O (half heavy hitters, half recent; the window here is smaller by default).
    Deviations: `every` entries go at once where the paper drops one a step; a group of query heads that shares a head
    of keys is summed. Every token is run once while it is watched: free in a prompt, a second, wide pass over what was
    decoded.
    """

    name = "h2o"
    reads: ClassVar[frozenset[Ability]] = frozenset({"attention"})

    @property
    def rows(self) -> int | None:
        return None

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for layer in range(view.info.n_layers):
            total = np.zeros((view.info.kv_heads, view.n_entries), dtype=np.float32)
            for shares in view.attention(layer):
                total += shares.sum(axis=(1, 2))
            layers.append(total)
        scores = stack(layers)
        if view.carried is not None:
            scores[..., : view.carried.shape[-1]] += view.carried
        view.carry(scores)
        return scores
