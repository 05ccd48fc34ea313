"""What the last queries look for, found in a cache that is kept whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import OptionError
from ...interfaces import Ability, Indices
from .scorer import Kept
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSelect(Kept):
    """Names the blocks of entries that the last rows attend to most; the next `every` tokens see these and no others.

    Nothing is evicted: what is left out now may be chosen next time. So memory stays that of the full cache, and a step
    is as fast as over `budget` entries.
    block: entries that are chosen together. layers: how many vote, evenly spaced. watched: rows whose queries do.
    Source: Wu et al. 2024, TokenSelect (every head's softmax is a vote; first and last entries always). Deviations:
    blocks for single entries, one choice for all layers, by some of them, every so many tokens; prompts see everything.
    """

    every: int = 16
    sinks: int = 32
    window: int = 128
    block: int = 32
    layers: int = 6
    watched: int = 8
    name = "select"

    def __post_init__(self) -> None:
        Kept.__post_init__(self)
        least = self.sinks + self.window + 3 * self.block
        if self.budget < least:
            raise OptionError(
                f"a budget of {self.budget} entries leaves no block of {self.block} to choose beside {self.sinks} "
                f"sinks and a window of {self.window}; give a budget of {least} or more."
            )

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"attend", "queries", "keys"})

    @property
    def rows(self) -> int | None:
        return self.watched

    def select(self, view: CacheView) -> Indices:
        """Whole blocks, and behind them everything from the window on, (m,)."""
        n = view.n_entries
        first = -(-self.sinks // self.block) * self.block
        last = (n - self.window) // self.block * self.block
        votes = np.zeros(n)
        for layer in np.unique(
            np.linspace(0, view.info.n_layers - 1, min(self.layers, view.info.n_layers)).round().astype(int)
        ):
            for shares in view.attention(int(layer)):
                votes += shares.sum(axis=(0, 1, 2))
        blocks = votes[first:last].reshape(-1, self.block).sum(axis=1)
        room = (self.budget - first - (n - last)) // self.block
        best = np.sort(np.argsort(-blocks, kind="stable")[:room])
        chosen = first + (best[:, None] * self.block + np.arange(self.block)).ravel()
        return np.concatenate([np.arange(first), chosen, np.arange(last, n)])
