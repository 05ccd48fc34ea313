"""The keys and values of all sequences over one model: blocks of entries, shared where sequences began alike."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import NoMemoryError

Array = npt.NDArray[np.generic]
Blocks = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]

_FIRST = 16  # blocks a pool begins with


@dataclass(frozen=True, slots=True)
class BlockShape:
    """One layer's keys or values in a block, as the engine stores them.

    row: elements of one entry and head, scales included. bits: of one element; two of four bits share a byte.
    """

    kind: Any  # openvino.Type
    heads: int
    entries: int
    row: int
    bits: int

    def allocate(self, n_blocks: int) -> Array:
        """Zeros (n_blocks, heads, entries, row as stored): what is masked is multiplied by zero and must be finite."""
        dtype = {32: np.float32, 16: np.float16}.get(self.bits, np.uint8)
        return np.zeros((n_blocks, self.heads, self.entries, self.row * min(self.bits, 8) // 8), dtype=dtype)


class BlockPool:
    """Blocks with a count of the sequences that hold them. Grows by doubling, but never beyond what their tables hold.

    lock: held by whoever reads or writes entries or a table of blocks, as growing replaces the arrays, and shrinking
    moves what is held. generation: counts replacements.
    """

    def __init__(self, shapes: Sequence[BlockShape]) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self.block_size = shapes[0].entries
        self.arrays: list[Array] = []  # keys and values of each layer in turn, see BlockShape.allocate
        self.tensors: list[Any] = []  # the same memory, as the engine takes it
        self._shapes = tuple(shapes)
        self._holders: list[int] = []
        self._free: list[int] = []
        self._tables: weakref.WeakValueDictionary[int, Blocks] = weakref.WeakValueDictionary()

    def table(self, n_blocks: int) -> Blocks:
        """For the blocks of one sequence; the pool changes their numbers when it moves them."""
        made: Blocks = np.zeros(n_blocks, dtype=np.int32)
        self._tables[id(made)] = made
        return made

    @property
    def nbytes(self) -> int:
        """Allocated, held or free."""
        return sum(x.nbytes for x in self.arrays)

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return len(self._holders) - len(self._free)

    def take(self) -> int:
        """A block for one more holder. Raises EngineError where there is no memory."""
        if not self._free:
            n = len(self._holders)
            most = sum(len(table) for table in list(self._tables.values()))
            self._grow(max(n + 1, min(max(_FIRST, 2 * n), most)))
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def share(self, blocks: Blocks) -> None:
        """One more holder for each."""
        for block in blocks.tolist():
            self._holders[block] += 1

    def release(self, blocks: Blocks) -> None:
        """One holder less for each."""
        for block in blocks.tolist():
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)

    def shrink(self) -> None:
        """Give memory back, where hardly anything is held: what is held moves together."""
        held = np.flatnonzero(self._holders)
        n_blocks = max(_FIRST, len(held))
        if 2 * n_blocks > len(self._holders):
            return
        arrays = [shape.allocate(n_blocks) for shape in self._shapes]
        for old, new in zip(self.arrays, arrays, strict=True):
            new[: len(held)] = old[held]
        moved = np.zeros(len(self._holders), dtype=np.int32)
        moved[held] = np.arange(len(held))
        for table in list(self._tables.values()):
            table[:] = moved[table]
        self._holders = [*(self._holders[block] for block in held.tolist()), *[0] * (n_blocks - len(held))]
        self._free = list(range(n_blocks - 1, len(held) - 1, -1))
        self._replace(arrays)

    def is_shared(self, block: int) -> bool:
        return self._holders[block] > 1

    def copy(self, block: int) -> int:
        """A block of one's own with the entries of another, which loses a holder."""
        made = self.take()
        for x in self.arrays:
            x[made] = x[block]
        self._holders[block] -= 1
        return made

    def _grow(self, n_blocks: int) -> None:
        n = len(self._holders)
        try:
            arrays = [shape.allocate(n_blocks) for shape in self._shapes]
        except MemoryError:
            raise NoMemoryError(
                f"there is no memory for a cache of {n_blocks * self.block_size} entries. Close other programs or "
                "sessions, or open the session with a smaller max_context."
            ) from None
        for old, new in zip(self.arrays, arrays, strict=False):
            new[:n] = old
        self._holders += [0] * (n_blocks - n)
        self._free += range(n_blocks - 1, n - 1, -1)
        self._replace(arrays)

    def _replace(self, arrays: list[Array]) -> None:
        from openvino import Shape, Tensor

        self.arrays = arrays
        self.tensors = [
            Tensor(x.reshape(-1), Shape([len(x), s.heads, s.entries, s.row]), s.kind)
            for x, s in zip(arrays, self._shapes, strict=True)
        ]
        self.generation += 1
