"""What the last token attends to stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...interfaces import Ability, Floats
from .scorer import Scorer, stack
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Tova(Scorer):
    """Keeps what the last query attends to, averaged over all heads of a layer, so that a layer's heads keep the same.

    Source: Oren et al. 2024, "Transformers are multi-state RNNs". Deviations: `every` entries go at once where the
    paper drops one a step, and a few sinks and recent entries always stay.
    """

    name = "tova"
    reads: ClassVar[frozenset[Ability]] = frozenset({"attention"})

    @property
    def rows(self) -> int | None:
        return 1

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for layer in range(view.info.n_layers):
            (shares,) = view.attention(layer)
            mean = shares.mean(axis=(0, 1, 2))
            layers.append(np.broadcast_to(mean, (view.info.kv_heads, view.n_entries)))
        return stack(layers)
