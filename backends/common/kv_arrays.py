"""Keys and values of all layers in one array that grows, each layer's entries at the beginning of its part."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ...runtime.errors import NoMemoryError
from ...runtime.interfaces import Floats, Indices, ModelInfo
from .kv_rows import take_rows

_FIRST = 64  # entries that there is room for at first; room grows by doubling


class KvArrays:
    """f32, finite everywhere: what is masked is multiplied by zero. Which entries there are is for Rows to know.

    array: (2 * n_layers, heads, capacity, head_dim), key and value of each layer in turn.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._heads = info.kv_heads
        self.array: Floats = np.zeros((2 * info.n_layers, self._heads, 0, info.head_dim), dtype=np.float32)
        self.reserve(1, 0)

    @property
    def capacity(self) -> int:
        return int(self.array.shape[2])

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def reserve(self, n_entries: int, held: int) -> None:
        """Room for so many entries; the first `held` stay as they are. Raises EngineError without memory for them.

        Where there was too little room, `array` is another one afterwards.
        """
        capacity = max(self.capacity, _FIRST)
        while capacity < n_entries:
            capacity *= 2
        if capacity == self.capacity:
            return
        parts, heads, _, width = self.array.shape
        try:
            grown = np.zeros((parts, heads, capacity, width), dtype=np.float32)
        except (MemoryError, ValueError):  # numpy's, for sizes beyond any address
            raise NoMemoryError(
                f"there is no memory for a cache of {capacity} entries ({4 * parts * heads * capacity * width} bytes). "
                "Close other programs, or open the session with a smaller max_context."
            ) from None
        grown[:, :, :held] = self.array[:, :, :held]
        self.array = grown

    def write(self, rows: Floats, at: int) -> None:
        """Hold these rows (2 * n_layers, heads, n, head_dim) from entry `at` on."""
        self.array[:, :, at : at + rows.shape[2]] = rows

    def entries(self, n: int) -> list[Floats]:
        """The first n of every layer's keys and values, (heads, n, head_dim); views."""
        return list(self.array[:, :, :n])

    def selected(self, entries: Indices) -> list[Floats]:
        """These of every layer's keys and values, (heads, n, head_dim); copies."""
        return list(self._taken(entries))

    def fill(self, entries: Iterable[npt.NDArray[np.generic]], n: int) -> None:
        """Hold these n entries instead."""
        self.reserve(n, 0)
        for part, held in zip(self.array, entries, strict=True):
            part[:, :n] = held

    def gather(self, entries: Indices, unchanged: int) -> None:
        """Move the kept entries together, in place; those before `unchanged` stay where they are."""
        self.write(self._taken(entries[unchanged:]), unchanged)

    def close(self) -> None:
        self.array = self.array[:, :, :0].copy()

    def _taken(self, entries: Indices) -> Floats:
        parts, heads, capacity, width = self.array.shape
        return take_rows(self.array.reshape(-1, capacity, width), entries).reshape(parts, heads, -1, width)
