"""Keys and values of a graph made elsewhere, as it takes and gives them: written in place, or copied by every step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...runtime.errors import NoMemoryError
from ...runtime.interfaces import Indices
from ..common.kv_rows import take_rows
from ..common.saved_cache import Array

_FIRST = 512  # entries that there is room for at first; room grows by doubling


class ForeignCache(ABC):
    """Entries of all layers, keys and values in turn, each (1, heads, n, head_dim). How many there are is for Rows to
    know; what lies behind them is never read.

    ort: the package. pairs: names of input and output of each.
    """

    def __init__(self, ort: Any, pairs: list[tuple[str, str]], kind: type[np.generic], heads: int, dim: int) -> None:
        self._value, self._pairs, self._kind = ort.OrtValue.ortvalue_from_numpy, pairs, kind
        self._heads, self._dim = heads, dim
        self._room = 0

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def bind(self, binding: Any, n_past: int, n_new: int) -> None:
        """Give a step its past, and the place for what it makes of it. Raises NoMemoryError before anything changes."""

    @abstractmethod
    def ran(self, n_entries: int) -> None:
        """The step that was bound has succeeded, and there are so many entries."""

    @abstractmethod
    def entries(self, n: int) -> list[Array]:
        """The first n of each, (heads, n, head_dim); views."""

    @abstractmethod
    def fill(self, entries: Iterable[Array], n: int) -> None:
        """Hold these n entries instead."""

    def keep(self, entries: Indices, n: int) -> None:
        """Hold these of n entries alone."""
        self.fill([take_rows(x, entries) for x in self.entries(n)], len(entries))

    @abstractmethod
    def close(self) -> None: ...

    def _arrays(self, room: int) -> list[Array]:
        """Memory for so many entries of each, one after the other."""
        size = self._heads * room * self._dim
        try:
            return [np.empty(size, dtype=self._kind) for _ in self._pairs]
        except (MemoryError, ValueError):  # numpy's, for sizes beyond any address
            mebibytes = len(self._pairs) * size * np.dtype(self._kind).itemsize >> 20
            raise NoMemoryError(
                f"there is no memory for a cache of {room} entries ({mebibytes} MiB). Close other programs, or open "
                "the session with a smaller max_context."
            ) from None

    def _grown(self, n: int) -> int:
        """Room for n entries and some more."""
        return max(n, min(_FIRST, 2 * n) if not self._room else 2 * self._room)

    def _shaped(self, flat: Array, n: int) -> Array:
        """The beginning of an array, as n entries without gaps."""
        return flat[: self._heads * n * self._dim].reshape(1, self._heads, n, self._dim)


class InPlace(ForeignCache):
    """The graph writes new entries behind those that are there; a step is told how many count.

    least: entries that there is always room for: attention with a window wants as many as it sees.
    """

    def __init__(
        self, ort: Any, pairs: list[tuple[str, str]], kind: type[np.generic], heads: int, dim: int, least: int
    ) -> None:
        super().__init__(ort, pairs, kind, heads, dim)
        self._held: list[Array] = []
        self._values: list[Any] = []
        self._reserve(least, 0)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self._held)

    def bind(self, binding: Any, n_past: int, n_new: int) -> None:
        self._reserve(n_past + n_new, n_past)
        for (past, present), value in zip(self._pairs, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def ran(self, n_entries: int) -> None:
        """They lie where they belong."""

    def entries(self, n: int) -> list[Array]:
        return [x[0, :, :n] for x in self._held]

    def fill(self, entries: Iterable[Array], n: int) -> None:
        self._reserve(n, 0)
        for x, held in zip(self._held, entries, strict=True):
            x[0, :, :n] = held

    def close(self) -> None:
        self._held, self._values, self._room = [], [], 0

    def _reserve(self, n: int, held: int) -> None:
        if n <= self._room:
            return
        room = self._grown(n)
        grown = [self._shaped(x, room) for x in self._arrays(room)]
        for old, new in zip(self._held, grown, strict=False):
            new[:, :, :held] = old[:, :, :held]
        self._held, self._room = grown, room
        self._values = [self._value(x) for x in grown]


class Copied(ForeignCache):
    """The graph takes exactly the entries that count and gives back a longer array, for which there is another one."""

    def __init__(self, ort: Any, pairs: list[tuple[str, str]], kind: type[np.generic], heads: int, dim: int) -> None:
        super().__init__(ort, pairs, kind, heads, dim)
        self._flat: list[Array] = []
        self._other: list[Array] = []
        self._n = 0  # entries that lie without gaps
        self._bound: list[Any] = []
        self._reserve(1)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self._flat, *self._other))

    def bind(self, binding: Any, n_past: int, n_new: int) -> None:
        self._reserve(n_past + n_new)
        self._tighten(n_past)
        self._bound = []  # what is bound has to live until the step has run
        for (past, present), flat, other in zip(self._pairs, self._flat, self._other, strict=True):
            taken, given = self._value(self._shaped(flat, n_past)), self._value(self._shaped(other, n_past + n_new))
            binding.bind_ortvalue_input(past, taken)
            binding.bind_ortvalue_output(present, given)
            self._bound += [taken, given]

    def ran(self, n_entries: int) -> None:
        self._flat, self._other, self._n = self._other, self._flat, n_entries

    def entries(self, n: int) -> list[Array]:
        return [self._shaped(x, self._n)[0, :, :n] for x in self._flat]

    def fill(self, entries: Iterable[Array], n: int) -> None:
        taken = [np.array(x) for x in entries]  # which may be views of what is written
        self._n = 0
        self._reserve(n)
        for flat, held in zip(self._flat, taken, strict=True):
            self._shaped(flat, n)[0] = held
        self._n = n

    def close(self) -> None:
        self._flat, self._other, self._bound, self._room, self._n = [], [], [], 0, 0

    def _tighten(self, n: int) -> None:
        """Close the gaps behind the first n entries of each head."""
        if n != self._n:
            for flat in self._flat:
                self._shaped(flat, n)[...] = self._shaped(flat, self._n)[:, :, :n].copy()
            self._n = n

    def _reserve(self, n: int) -> None:
        if n <= self._room:
            return
        room = self._grown(n)
        grown, other = self._arrays(room), self._arrays(room)
        for old, new in zip(self._flat, grown, strict=False):
            used = math.prod((self._heads, self._n, self._dim))
            new[:used] = old[:used]
        self._flat, self._other, self._room = grown, other, room
