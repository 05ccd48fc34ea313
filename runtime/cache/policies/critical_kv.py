"""Half by attention, half by what attention makes of the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import OptionError
from ...interfaces import Ability, Floats, Indices
from .scorer import keep_best, stack
from .view import CacheView
from .wrapper import Wrapper


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalKV(Wrapper):
    """Fills a part of the room with the best scores, the rest by (score + epsilon) * |value|, the sum of magnitudes.

    scorer: whose scores are shares of attention; one selection for each head, or for all, as it is set there.
    first: the part that goes by the scores alone.
    Source: Feng et al. 2025, CriticalKV (first 0.5, epsilon 1e-4). Deviation: the paper takes the norm of the value
    behind the output projection, which engines do not give out; here it is the value's own, as in VATP (Guo et al.
    2024), so what a projection amplifies or ignores is not seen.
    """

    first: float = 0.5
    epsilon: float = 1e-4
    prefix: ClassVar[str] = "critical-"

    def __post_init__(self) -> None:
        Wrapper.__post_init__(self)
        if not self.scorer.shares:
            raise OptionError(
                f"{self.prefix} weighs shares of attention by values, and scores of {self.scorer.name} are none, or "
                "weighed by values already; it wraps tova, h2o, snapkv, kvzip, and expected with value_norm=false."
            )
        if not 0.0 <= self.first <= 1.0 or not self.epsilon >= 0.0:
            raise OptionError(f"first is {self.first} and epsilon {self.epsilon}, but must be 0 to 1, and 0 or more.")

    @property
    def needs(self) -> frozenset[Ability]:
        return self.scorer.needs | {"keys"}

    @property
    def shares(self) -> bool:
        return False

    def scores(self, view: CacheView) -> Floats:
        base = self.scorer.scores(view)
        sizes = stack([np.abs(values).sum(axis=-1) for _, values in view.layers_keys_values()])
        weighed: Floats = (base + np.float32(self.epsilon)) * sizes
        middle = base[..., self.sinks : view.n_entries - self.window]
        chosen = np.argsort(-middle, axis=-1, kind="stable")[..., : int(self.room * self.first)] + self.sinks
        above = weighed.max(axis=-1, keepdims=True) + np.float32(1.0)
        np.put_along_axis(weighed, chosen, np.take_along_axis(weighed, chosen, axis=-1) + above, axis=-1)
        return weighed

    def select(self, view: CacheView) -> Indices:
        scores = self.scores(view)
        per_head = "evict_heads" in self.scorer.needs
        return keep_best(scores if per_head else scores.sum(axis=(0, 1)), self)
