"""What the last few tokens attend to stays, with its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import OptionError
from ...interfaces import Ability, Floats
from .scorer import Scorer, stack
from .view import CacheView

_WIDEST = 255  # neighbours that are averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapKV(Scorer):
    """Keeps what the queries of the window attend to, averaged over them, pooled over neighbours, averaged over groups.

    kernel: width of the average pooling, odd. The window's own entries always stay.
    observed: how many of the window's last queries are looked at, at most. Looking takes time, and 8 choose as well.
    Source: Li et al. 2024, SnapKV (window 32, all of it observed, kernel 5), with the mean over a group of query heads
    before the selection as in kvpress, so that models with grouped queries really save. Deviations: it selects
    whenever the cache is full, where the paper does so once, at the end of the prompt; sinks always stay.
    """

    kernel: int = 5
    observed: int = 8
    name = "snapkv"
    reads: ClassVar[frozenset[Ability]] = frozenset({"attention"})

    def __post_init__(self) -> None:
        Scorer.__post_init__(self)  # super() does not know a dataclass with slots
        if self.kernel % 2 == 0 or self.kernel > _WIDEST:
            raise OptionError(f"kernel is {self.kernel}, but must be odd and from 1 to {_WIDEST}.")

    @property
    def rows(self) -> int | None:
        return min(self.window, self.observed)

    def scores(self, view: CacheView) -> Floats:
        layers: list[Floats] = []
        for layer in range(view.info.n_layers):
            blocks = list(view.attention(layer))
            shares = np.concatenate(blocks, axis=2) if len(blocks) > 1 else blocks[0]
            mean = shares.mean(axis=2)  # (kv_heads, group, n)
            mean[..., view.n_entries - self.window :] = 0.0  # pooled over the prefix alone
            layers.append(pooled(mean, self.kernel).mean(axis=1))
        return stack(layers)


def pooled(x: Floats, kernel: int) -> Floats:
    """Average over `kernel` neighbours along the last axis; beyond the ends there are zeros."""
    half = kernel // 2
    total = np.array(x, dtype=np.float32)
    for shift in range(1, half + 1):
        total[..., shift:] += x[..., :-shift]
        total[..., :-shift] += x[..., shift:]
    return total / np.float32(kernel)
