"""Keys and values of all layers in arrays that grow, (1, heads, capacity, head_dim), the entries at their beginning."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..runtime.errors import EngineError
from ..runtime.interfaces import Floats, Indices, ModelInfo
from .kv_rows import take_rows

_FIRST = 64  # entries that arrays begin with; they grow by doubling


class KvArrays:
    """f32, finite everywhere: what is masked is multiplied by zero. Which entries there are is for Rows to know.

    generation: counts how often the arrays were replaced.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self.arrays: list[Floats] = []  # key and value of each layer in turn
        self.capacity = 0
        self.generation = 0

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.arrays)

    def reserve(self, n_entries: int, held: int) -> None:
        """Room for so many entries; the first `held` stay as they are. Raises EngineError without memory for them."""
        capacity = max(self.capacity, _FIRST)
        while capacity < n_entries:
            capacity *= 2
        if capacity == self.capacity:
            return
        shape = (1, self._info.kv_heads, capacity, self._info.head_dim)
        try:
            grown = [np.zeros(shape, dtype=np.float32) for _ in range(2 * self._info.n_layers)]
        except (MemoryError, ValueError):  # numpy's, for sizes beyond any address
            raise EngineError(
                f"there is no memory for a cache of {capacity} entries ({8 * self._info.n_layers * math.prod(shape)} "
                "bytes). Close other programs, or open the session with a smaller max_context."
            ) from None
        for old, new in zip(self.arrays, grown, strict=False):
            new[:, :, :held] = old[:, :, :held]
        self.arrays, self.capacity = grown, capacity
        self.generation += 1

    def entries(self, n: int) -> list[Floats]:
        """The first n of every array, (heads, n, head_dim); views."""
        return [x[0, :, :n] for x in self.arrays]

    def selected(self, entries: Indices) -> list[Floats]:
        """These of every array, (heads, n, head_dim); copies."""
        return [take_rows(x[0], entries) for x in self.arrays]

    def fill(self, entries: Iterable[npt.NDArray[np.generic]], n: int) -> None:
        """Hold these n entries instead."""
        self.reserve(n, 0)
        for x, held in zip(self.arrays, entries, strict=True):
            x[0, :, :n] = held

    def gather(self, entries: Indices, unchanged: int) -> None:
        """Move the kept entries together, in place; those before `unchanged` stay where they are."""
        moved = entries[unchanged:]
        for x in self.arrays:
            x[0, :, unchanged : len(entries)] = take_rows(x[0], moved)

    def close(self) -> None:
        self.arrays, self.capacity = [], 0
