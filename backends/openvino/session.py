"""One sequence over OpenVINO: a table of blocks in a pool that all sequences over the same weights share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.errors import AbilityError, OptionError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import Rows, ancestors, room_for
from ..common.saved_cache import Array, Layout, pack, unpack
from .block_pool import Blocks
from .loaded_model import OvModel
from .request import Request

_ABILITIES: frozenset[Ability] = frozenset({"tree", "evict_tokens", "attend", "hidden", "queries", "fork", "save"})
_SEEN: frozenset[Ability] = frozenset({"keys", "attention"})  # where the cache holds plain numbers
Mask = npt.NDArray[np.bool_]


def _abilities(model: OvModel, max_context: int) -> frozenset[Ability]:
    """What a session of this size can do.

    A sliding window is counted in entries. Where positions have gaps, or rows share one, that is another window than
    the model's; so there is no eviction, and there are trees only where the window never closes.
    """
    found = _ABILITIES | _SEEN if model.readable_cache else _ABILITIES
    closing = min((window for window in model.windows if window), default=None)
    if closing is None:
        return found
    found -= {"evict_tokens", "attend"}
    return found if max_context <= closing else found - {"tree"}


class OvSession(DecoderOnly):
    """One sequence. Its entries lie in the blocks of `_table`, in order; only the last block has room left."""

    def __init__(self, model: OvModel, max_context: int) -> None:
        self._model, self._pool = model, model.pool
        self.info = model.info
        self.max_context = max_context
        self.abilities = _abilities(model, max_context)
        self._rows = Rows(max_context, self.info.context_length)
        self._table = self._pool.table(-(-max_context // self._pool.block_size))
        self._n_blocks = 0
        self._view: Blocks = np.zeros_like(self._table)  # of it, what steps see, where that is not all
        self._seen: Indices | None = None  # indices of those blocks; None: all
        self._chosen_of = 0  # entries that there were when they were chosen
        self._request: Request | None = model.request()
        self._observing: Request | None = None
        with self._pool.lock:
            self._reserve(1)

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        """This sequence's share of what is allocated, by the blocks that are held."""
        return self._n_blocks * self._pool.nbytes // self._pool.held if self._n_blocks else 0

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if not observe <= self.abilities:
            self._refuse(", ".join(sorted(observe - self.abilities)))
        if parents is not None and "tree" not in self.abilities:
            self._refuse_beyond_window("trees")
        n_past = self._rows.n
        positions = self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)
        self._model.check_open()
        branches = parents is not None and (parents[1:] != np.arange(len(tokens) - 1)).any()
        mask = ancestors(parents) if parents is not None and branches else None
        request = self._runner(observe)
        with self._pool.lock:
            self._reserve(n_past + len(tokens), n_past)
            blocks = self._blocks()
            n_unseen = (self._n_blocks - len(blocks)) * self._pool.block_size
            logits = request.run(tokens, positions, n_logits, n_past - n_unseen, blocks, mask)
        self._rows.append(positions, parents)
        if not observe:
            return Step(logits)
        return self._observed(request, logits, observe, len(tokens), mask)

    def truncate(self, n_tokens: int) -> None:
        self._rows.truncate(n_tokens)
        if self._rows.n < self._chosen_of:
            self._seen = None
        self._shrink()

    def accept(self, rows: Indices) -> None:
        self._gather(self._rows.accepted(rows), self._rows.n - self._rows.last_width)

    def keep(self, entries: Indices) -> None:
        self._gather(self._kept(entries), 0)
        with self._pool.lock:
            self._pool.shrink()
        self._seen = None

    def attend(self, entries: Indices | None) -> None:
        """A step over a part of the cache costs no copy: the blocks left out are not in the table that it is given."""
        if "attend" not in self.abilities:
            self._refuse_beyond_window("choice of entries")
        self._rows.check_settled()
        if entries is None:
            self._seen = None
            return
        size = self._pool.block_size
        unseen = np.unique(self._rows.unseen(entries, size) // size)
        self._chosen_of = self._rows.n
        self._seen = np.setdiff1d(np.arange(-(-self._rows.n // size)), unseen, assume_unique=True)

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        if "keys" not in self.abilities:
            self._refuse("keys and values")
        with self._pool.lock:
            keys, values = (self._read(x) for x in self._pool.arrays[2 * layer : 2 * layer + 2])
        return keys.astype(np.float32).swapaxes(0, 1), values.astype(np.float32).swapaxes(0, 1)

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> OvSession:
        """Shares all blocks, unless entries are chosen; whoever writes into one first gets a copy."""
        self._rows.check_settled()
        entries = None if entries is None else self._kept(entries)
        n = self._rows.n if entries is None else len(entries)
        other = OvSession(self._model, room_for(n, max_context or self.max_context))
        with self._pool.lock:
            if entries is None:
                self._pool.release(other._table[: other._n_blocks])
                shared = self._table[: self._n_blocks]
                other._table[: len(shared)], other._n_blocks = shared, len(shared)
                self._pool.share(shared)
            else:
                other._reserve(max(n, 1))
                old, new = self._slots(entries), other._slots(np.arange(n))
                for x in self._pool.arrays:
                    x[new[0], :, new[1]] = x[old[0], :, old[1]]
        other._rows.replace(self.positions if entries is None else self.positions[entries])
        return other

    def save(self) -> bytes:
        self._rows.check_settled()
        with self._pool.lock:
            return pack(self.info, self.positions, [self._read(x) for x in self._pool.arrays])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        positions, entries = unpack(self.info, state, self.max_context, self._layout)
        if "evict_tokens" not in self.abilities and (positions != np.arange(len(positions))).any():
            raise OptionError("this is no cache of a model with a sliding window: its positions have gaps.")
        with self._pool.lock:
            self._reserve(max(len(positions), 1), 0)
            at = self._slots(np.arange(len(positions)))
            for x, held in zip(self._pool.arrays, entries, strict=True):
                x[at[0], :, at[1]] = held
        self._rows.replace(positions)
        self._seen = None
        self._shrink()

    def close(self) -> None:
        self._rows.close()
        with self._pool.lock:
            self._pool.release(self._table[: self._n_blocks])
            self._pool.shrink()
        self._n_blocks = 0
        self._request = self._observing = None

    def _kept(self, entries: Indices) -> Indices:
        """Checked entries to keep."""
        if "evict_tokens" not in self.abilities:
            self._refuse_beyond_window("eviction")
        return self._rows.kept(entries)

    def _refuse(self, what: str) -> None:
        raise AbilityError(
            f"the openvino engine does not give out {what} of a cache in {self._model.kv_dtype}; open the model with "
            "kv_dtype='f16' or 'f32', or with the reference engine."
        )

    def _refuse_beyond_window(self, what: str) -> None:
        window = min(w for w in self._model.windows if w)
        trees = f" (trees: or with max_context={window} or less)" if what == "trees" else ""
        raise AbilityError(
            f"the openvino engine has no {what} beyond this model's sliding window of {window} tokens; open the model "
            f"with the onnx engine{trees}."
        )

    def _layout(self, n_entries: int) -> list[Layout]:
        """What save() writes for so many entries."""
        return [(x.dtype.type, (n_entries, x.shape[1], x.shape[3])) for x in self._pool.arrays]

    def _runner(self, observe: Observations) -> Request:
        if observe.isdisjoint({"queries", "attention"}):
            assert self._request is not None  # check_open() has passed
            return self._request
        if self._observing is None:
            self._observing = self._model.request(observing=True)
        return self._observing

    def _reserve(self, n_entries: int, written: int = 0) -> None:
        """Blocks for so many entries, of which those from `written` on belong to nobody else."""
        size = self._pool.block_size
        n = -(-n_entries // size)
        for i in range(written // size, min(n, self._n_blocks)):
            if self._pool.is_shared(int(self._table[i])):
                self._table[i] = self._pool.copy(int(self._table[i]))
        for i in range(self._n_blocks, n):
            self._table[i] = self._pool.take()
            self._n_blocks += 1

    def _blocks(self) -> Blocks:
        """The blocks that a step sees: a view of one array or of another."""
        if self._seen is None:
            return self._table[: self._n_blocks]
        later = np.arange(-(-self._chosen_of // self._pool.block_size), self._n_blocks)
        chosen = np.concatenate([self._seen, later])
        self._view[: len(chosen)] = self._table[chosen]
        return self._view[: len(chosen)]

    def _shrink(self) -> None:
        """Give back the blocks that hold nothing, but for the first."""
        n = max(-(-self._rows.n // self._pool.block_size), 1)
        if n < self._n_blocks:
            with self._pool.lock:
                self._pool.release(self._table[n : self._n_blocks])
            self._n_blocks = n

    def _slots(self, entries: Indices) -> tuple[Indices, Indices]:
        """Block and row of each entry."""
        blocks, rows = np.divmod(entries, self._pool.block_size)
        return self._table[blocks].astype(np.int64), rows

    def _read(self, array: Array) -> Array:
        """A copy of this sequence's entries: (n_entries, heads, row)."""
        at = self._slots(np.arange(self._rows.n))
        return array[at[0], :, at[1]]

    def _gather(self, entries: Indices, unchanged: int) -> None:
        """Move the kept entries together, in place; those before `unchanged` stay where they are."""
        while unchanged < len(entries) and entries[unchanged] == unchanged:
            unchanged += 1
        if unchanged < len(entries):
            with self._pool.lock:
                self._reserve(len(entries), unchanged)
                old, new = self._slots(entries[unchanged:]), self._slots(np.arange(unchanged, len(entries)))
                for x in self._pool.arrays:
                    x[new[0], :, new[1]] = x[old[0], :, old[1]]
        self._rows.keep(entries)
        self._shrink()

    def _observed(self, request: Request, logits: Floats, observe: Observations, width: int, mask: Mask | None) -> Step:
        hidden = request.output("hidden") if "hidden" in observe else None
        if request is not self._observing:
            return Step(logits, hidden=hidden)
        info = self.info
        rows = [request.output(f"query_{i}").reshape(width, info.n_heads, -1) for i in range(info.n_layers)]
        queries = np.stack(rows).swapaxes(1, 2)
        seen = np.tril(np.ones((width, width), dtype=bool)) if mask is None else mask
        return Step(
            logits,
            hidden=hidden,
            queries=queries if "queries" in observe else None,
            attention=self._attention(queries, seen) if "attention" in observe else None,
        )

    def _attention(self, queries: Floats, seen: Mask) -> Floats:
        """Softmax of queries (n_layers, n_heads, n, head_dim) over all entries, the last n of which see each other."""
        group = self.info.n_heads // self.info.kv_heads
        layers = []
        past = self._rows.n - len(seen)
        for i, query in enumerate(queries):
            keys = np.repeat(self.keys_values(i)[0], group, axis=0)
            scores = query @ keys.swapaxes(1, 2) * np.float32(self._model.scale)
            scores[:, :, past:][:, ~seen] = -np.inf
            if self._model.windows[i]:
                ages = np.arange(past, past + len(seen))[:, None] - np.arange(past + len(seen))
                scores[:, ages >= self._model.windows[i]] = -np.inf
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            layers.append(shares / shares.sum(axis=-1, keepdims=True))
        return np.stack(layers)
