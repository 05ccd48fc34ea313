"""The beginning and the recent past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...interfaces import Indices
from .scorer import Kept
from .view import CacheView


@dataclass(frozen=True, slots=True, kw_only=True)
class SinksAndWindow(Kept):
    """Keeps the first entries, which all heads attend to, and the last ones. Reads nothing: runs on every engine.

    `window` is only the least that always stays; the whole budget but the sinks is recent.
    Source: Xiao et al. 2023, StreamingLLM (4 sinks). Deviation: entries keep their true positions until the model has
    no more of them; then the kept tokens are read anew at the first ones, which is the paper's baseline "sliding window
    with recomputation" with sinks, once per context length. The paper turns keys at every eviction, which engines do
    not offer and int8 caches would not survive.
    """

    name = "sinks"

    @property
    def restart(self) -> int:
        return self.sinks

    @property
    def rows(self) -> int | None:
        return 0

    def select(self, view: CacheView) -> Indices:
        n = view.n_entries
        return np.concatenate([np.arange(self.sinks), np.arange(n - self.budget + self.sinks, n)])
