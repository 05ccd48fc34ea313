"""Which entries a cache holds and where they stand: shared bookkeeping of engines that keep entries in rows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.errors import AbilityError, ContextFullError, EngineError, OptionError
from ...runtime.interfaces import Ability, Indices, Tokens

_T = TypeVar("_T", bound=np.generic)


class Rows:
    """Positions of the entries in a cache with room for max_context of them. Everything is checked before it is done.

    After a tree the positions do not ascend, so until a path is accepted, or the tree forgotten, nothing else works.
    """

    def __init__(self, max_context: int, n_positions: int) -> None:
        """n_positions: how many the model's rotary embedding has; an evicted cache holds fewer entries than that."""
        self.max_context = max_context
        self._positions = np.empty(max_context + 1, dtype=np.int64)  # one more: with_new() of a spare row
        self._numbers = np.arange(n_positions, dtype=np.int64)
        self.n = 0
        self.last_width = 0  # rows of the last forward pass; 0 once something else has changed the cache
        self._parents: Indices | None = None  # of the last forward pass, if it branched
        self._closed = False

    @property
    def positions(self) -> Indices:
        """Position of every entry; a view."""
        return self._positions[: self.n]

    def plan(self, tokens: Tokens, n_logits: int, parents: Indices | None, vocab_size: int) -> Indices:
        """Positions of new rows. Raises ContextFullError, OptionError and EngineError; changes nothing."""
        self.check_open()
        self._check_settled()
        width = len(tokens)
        if width == 0 or not 0 <= n_logits <= width:
            raise OptionError(f"{n_logits} logit rows of {width} tokens are impossible.")
        if self.n + width > self.max_context:
            need = self.n + width
            larger = f", or open it with max_context={need} or more" if need <= len(self._numbers) else ""
            raise ContextFullError(
                f"{width} tokens do not fit: {self.n} of {self.max_context} entries are used. Truncate the session "
                f"first{larger}."
            )
        ids = tokens.tolist()  # of a handful, minimum and maximum are faster in Python
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise OptionError(f"token ids must lie in 0..{vocab_size - 1}, but {min(ids)}..{max(ids)} were given.")
        start = int(self._positions[self.n - 1]) + 1 if self.n else 0
        if parents is None:
            self._check_positions(start + width)
            return self._numbers[start : start + width]
        if len(parents) != width or parents[0] != 0 or (parents[1:] >= np.arange(1, width)).any() or parents.min() < 0:
            raise OptionError("parents must hold one row index per token, parents[0] == 0 and parents[r] < r.")
        depth = np.zeros(width, dtype=np.int64)
        for row in range(1, width):
            depth[row] = depth[parents[row]] + 1
        self._check_positions(start + int(depth.max()) + 1)
        return start + depth

    def with_new(self, positions: Indices) -> Indices:
        """Positions of all entries and, behind them, of these new rows, which do not belong to them yet; a view."""
        end = self.n + len(positions)
        self._positions[self.n : end] = positions
        return self._positions[:end]

    def append(self, positions: Indices, parents: Indices | None) -> None:
        """The rows of a forward pass that succeeded."""
        self._positions[self.n : self.n + len(positions)] = positions
        self.n += len(positions)
        self.last_width = len(positions)
        branches = parents is not None and (parents[1:] != np.arange(len(parents) - 1)).any()
        self._parents = parents.copy() if parents is not None and branches else None

    def truncate(self, n_tokens: int) -> None:
        """Forget entries at positions >= n_tokens."""
        self.check_open()
        if n_tokens < 0:
            raise OptionError(f"a cache cannot be truncated to {n_tokens} tokens.")
        if self._parents is None:
            n = int(self.positions.searchsorted(n_tokens))
        else:
            n = int(np.count_nonzero(self.positions < n_tokens))
        if self._parents is not None:
            if n > self.n - self.last_width + 1:  # more than row 0 of the tree
                self._check_settled()
            self._parents = None
        self.n = n
        self.last_width = 0

    def accepted(self, rows: Indices) -> Indices:
        """Entries that stay when these rows of the last forward pass are accepted."""
        self.check_open()
        if not self.last_width or len(rows) == 0 or rows[0] != 0 or rows[-1] >= self.last_width:
            raise OptionError("accept() follows a forward pass and takes a path of its rows that begins with row 0.")
        parents = np.arange(-1, self.last_width - 1) if self._parents is None else self._parents
        if (np.diff(rows) <= 0).any() or (parents[rows[1:]] != rows[:-1]).any():
            raise OptionError("the rows of an accepted path must ascend, each the child of the one before it.")
        base = self.n - self.last_width
        return np.concatenate([np.arange(base), base + rows])

    def kept(self, entries: Indices) -> Indices:
        """Checked ascending entries to keep, of all layers and heads."""
        self.check_open()
        self._check_settled()
        if entries.ndim != 1:
            raise AbilityError(
                "this engine evicts whole tokens, of all layers and heads alike; the reference engine and the onnx "
                "engine evict by layer and head."
            )
        if len(entries) and (entries[0] < 0 or entries[-1] >= self.n or (np.diff(entries) <= 0).any()):
            raise OptionError(f"entries to keep must ascend and lie in 0..{self.n - 1}.")
        return entries

    def unseen(self, entries: Indices, block: int = 1) -> Indices:
        """The entries that are not among these, checked for attend(). block: of how many entries all or none are."""
        left_out = np.setdiff1d(np.arange(self.n), self.kept(entries), assume_unique=True)
        whole = len(np.unique(left_out // block)) * block == len(left_out)
        if not len(entries) or entries[-1] != self.n - 1 or not whole:
            raise OptionError(
                f"entries to attend to must end with the last one, {self.n - 1}, and leave out whole blocks of {block}."
            )
        return left_out

    def kept_by_head(self, entries: Indices, n_layers: int, kv_heads: int) -> Indices:
        """Checked ascending entries to keep: (n,), or (n_layers, kv_heads, n)."""
        if entries.ndim == 1:
            return self.kept(entries)
        self.check_open()
        self._check_settled()
        if entries.shape[:-1] != (n_layers, kv_heads):
            raise OptionError(
                f"entries to keep have the shape {entries.shape}, but must be (n,) or ({n_layers}, {kv_heads}, n)."
            )
        if entries.size and (entries.min() < 0 or entries.max() >= self.n or (np.diff(entries, axis=-1) <= 0).any()):
            raise OptionError(f"entries to keep must ascend in every head and lie in 0..{self.n - 1}.")
        return entries

    def keep(self, entries: Indices) -> None:
        """Only these entries are left, in this order; of heads that differ, the last position counts."""
        self._positions[: entries.shape[-1]] = self.positions_of(entries)
        self.n = entries.shape[-1]
        self.last_width = 0
        self._parents = None

    def positions_of(self, entries: Indices) -> Indices:
        """Where these entries stand, (n,)."""
        positions = self.positions[entries]
        return positions if entries.ndim == 1 else positions.max(axis=(0, 1))

    def replace(self, positions: Indices) -> None:
        """Entries at these positions instead of the present ones."""
        self._positions[: len(positions)] = positions
        self.n = len(positions)
        self.last_width = 0
        self._parents = None

    def check_settled(self) -> None:
        """Raise EngineError after close() and OptionError while a tree waits for a path of it to be accepted."""
        self.check_open()
        self._check_settled()

    def close(self) -> None:
        """No entries any more, and none to come."""
        self._closed = True
        self.n = self.last_width = 0
        self._parents = None

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        if self._closed:
            raise EngineError("this session is closed; open another one.")

    def _check_positions(self, end: int) -> None:
        if end > len(self._numbers):
            raise ContextFullError(
                f"these tokens would stand at positions up to {end - 1}, but the model knows {len(self._numbers)}; "
                "eviction adds none. Begin a new context (truncate(0)), or use a model with a longer one."
            )

    def _check_settled(self) -> None:
        if self._parents is not None:
            raise OptionError("the last step was a tree: accept a path of it, or truncate to before its first branch.")


# What is one array for all layers, and so not to be had of a model whose layers keep entries of different sizes, or
# attend to what another layer keeps.
ONE_SIZE: frozenset[Ability] = frozenset({"evict_heads", "keys", "queries", "attention"})
WHY_ONE_SIZE = "this model's layers keep keys and values of different sizes, or share them"


def take_rows(held: npt.NDArray[_T], entries: Indices) -> npt.NDArray[_T]:
    """Of held (heads, n, width) these entries, (m,) or (heads, m), as (heads, m, width).

    Whole rows are copied: measured 6-7 times as fast as numpy's take_along_axis or an index along an inner axis.
    """
    heads, n, width = held.shape
    at = np.arange(heads)[:, None] * n + entries
    taken: npt.NDArray[_T] = np.take(held.reshape(heads * n, width), at.ravel(), axis=0)
    return taken.reshape(heads, -1, width)


def room_for(n_entries: int, max_context: int) -> int:
    """max_context of a new session that shall hold so many entries. Raises ContextFullError where it cannot."""
    if n_entries > max_context:
        raise ContextFullError(
            f"{n_entries} entries do not fit into a session of {max_context}; fork with max_context={n_entries} or "
            "more, or fewer entries."
        )
    return max_context


def ancestors(parents: Indices) -> npt.NDArray[np.bool_]:
    """(n, n) booleans: row r sees row c, which is itself or above it."""
    n = len(parents)
    sees = np.eye(n, dtype=bool)
    for row in range(1, n):
        sees[row] |= sees[parents[row]]
    return sees
