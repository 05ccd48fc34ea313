"""Surprising tokens stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...interfaces import Floats, Indices
from .scorer import Kept, keep_best
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class SirLLM(Kept):
    """Keeps the tokens that the model had least expected, by -log p. Needs logits only: runs on every engine.

    decay: what a score loses, as a factor, at every selection that it survives.
    Source: Yao et al. 2024, SirLLM (4 sinks; decay 0.7 to 1 a turn of a conversation). Deviations: a window stays (the
    paper has none), and scores decay by selections, because a cache does not know turns.
    """

    decay: float = 1.0
    name = "sirllm"

    @property
    def rows(self) -> int | None:
        return None

    def select(self, view: CacheView) -> Indices:
        assert view.surprise is not None
        old: Floats = np.empty(0, dtype=np.float32) if view.carried is None else view.carried * np.float32(self.decay)
        scores = np.concatenate([old, view.surprise])
        view.carry(scores)
        return keep_best(scores, self)
