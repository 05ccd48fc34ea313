"""Short keys stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...interfaces import Floats
from .scorer import Scorer, stack
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Knorm(Scorer):
    """Keeps the entries whose keys have the smallest norm: those get the most attention.

    Source: Devoto et al. 2024, "A simple and effective L2 norm-based strategy". Deviation: norms are relative to
    their head's mean, which changes no head's order and makes heads comparable where they are summed.
    """

    name = "knorm"

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for keys, _ in view.layers_keys_values():
            norms = np.linalg.norm(keys, axis=-1)
            layers.append(-norms / norms.mean(axis=-1, keepdims=True))
        return stack(layers)
