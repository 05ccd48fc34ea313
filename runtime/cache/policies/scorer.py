"""What policies share that give every entry a score and keep the best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ...errors import OptionError
from ...interfaces import Ability, Floats, Indices
from .settings import check_settings
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How much stays: the first `sinks` entries, the last `window`, and of those between them what fills the budget.

    every: entries that are added before the next selection, so the cache never holds more than budget + every.
    """

    budget: int = 1024
    every: int = 256
    sinks: int = 4
    window: int = 32

    def __post_init__(self) -> None:
        check_settings(self)
        if self.budget < self.sinks + self.window:
            raise OptionError(
                f"a budget of {self.budget} entries cannot hold {self.sinks} sinks and a window of {self.window}, "
                f"which always stay; give a budget of {self.sinks + self.window} or more, or make those smaller."
            )
        rows = getattr(self, "rows", None)
        if rows is not None and rows > self.every:
            raise OptionError(
                f"{rows} rows are looked at, but only {self.every} were added since the last selection; give "
                f"every={rows} or more, or a smaller window."
            )

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"evict_tokens"})

    @property
    def spare(self) -> int:
        return 0

    @property
    def restart(self) -> int | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer(Kept, ABC):
    """Keeps the entries with the highest scores.

    per_head: every head of every layer keeps its own entries, equally many. False: all keep the same, those with the
        highest sum of scores over layers and heads; engines that can only drop whole tokens do this too.
    """

    per_head: bool = True

    name: ClassVar[str]
    reads: ClassVar[frozenset[Ability]] = frozenset({"keys"})

    @property
    def needs(self) -> frozenset[Ability]:
        return self.reads | {"evict_heads" if self.per_head else "evict_tokens"}

    @property
    def rows(self) -> int | None:
        return 0

    @property
    def shares(self) -> bool:
        """Whether scores are shares of attention: never negative, and none is weighed by its value."""
        return self.reads == {"attention"}

    @abstractmethod
    def scores(self, view: CacheView) -> Floats:
        """(n_layers, kv_heads, n_entries); the higher, the rather an entry stays."""

    def select(self, view: CacheView) -> Indices:
        scores = self.scores(view)
        return keep_best(scores if self.per_head else scores.sum(axis=(0, 1)), self)


class Fixed(Protocol):
    """How many entries stay, and which of them whatever their score."""

    @property
    def budget(self) -> int: ...
    @property
    def sinks(self) -> int: ...
    @property
    def window(self) -> int: ...


def keep_best(scores: Floats, kept: Fixed) -> Indices:
    """Entries (..., budget) with the best of scores (..., n), ascending; sinks and window always. Ties: the older."""
    n = scores.shape[-1]
    middle = scores[..., kept.sinks : n - kept.window]
    room = kept.budget - kept.sinks - kept.window
    best = _best(middle, min(room, middle.shape[-1])) + kept.sinks
    fixed = (*best.shape[:-1], -1)
    first = np.broadcast_to(np.arange(kept.sinks), (*fixed[:-1], kept.sinks))
    last = np.broadcast_to(np.arange(n - kept.window, n), (*fixed[:-1], kept.window))
    return np.concatenate([first, best, last], axis=-1).astype(np.int64)


def _best(scores: Floats, m: int) -> Indices:
    """The m largest of scores (..., n), ascending by place; of those that are equal the first. Quicker than sorting."""
    scores, n = np.fmax(scores, np.float32(-np.inf)), scores.shape[-1]  # what is no number is worth least
    if m == 0 or m == n:
        return np.broadcast_to(np.arange(m), (*scores.shape[:-1], m))
    least = np.partition(scores, n - m, axis=-1)[..., n - m, None]
    above, equal = scores > least, scores == least
    left = m - above.sum(axis=-1, keepdims=True)
    chosen = above | (equal & (equal.cumsum(axis=-1) <= left))
    return np.nonzero(chosen)[-1].reshape(*scores.shape[:-1], m)


def stack(layers: list[Floats]) -> Floats:
    """One array of the scores (kv_heads, n_entries) of every layer."""
    return np.stack(layers).astype(np.float32, copy=False)
