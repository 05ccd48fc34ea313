"""One llama_context: memory for so many entries and steps over it, with every pointer and code checked."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from ...runtime.errors import EngineError, UnsupportedModelError
from ...runtime.interfaces import Floats, Indices, ModelInfo, Tokens
from ...runtime.leaving import in_engine
from .library import KV_TYPES, library, listen, recent
from .watcher import Watcher

MAX_ROWS = 256  # of one decode: a prefill chunk
MAX_OUTPUTS = (
    64  # rows with logits among them; memory is reserved for all, and 256 rows of a large vocabulary are 155 MB
)
MAX_LEAVES = 64  # sequences: one for each leaf of a tree
_SOURCE_LEAVES = 16  # where each of them must be named for each token of a source
_TEXT, _MOVED = 0, 1  # sequences: what is committed, and what is on its way to another place
_PADDING = 256  # llama.cpp rounds a context up to a multiple of this


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How the contexts over some weights are made."""

    threads: int
    keys: str  # type of the cached keys: a name of KV_TYPES
    values: str
    flash: bool | None  # flash attention; None: whatever the device does well
    offload: bool  # the cache lies on a GPU
    entry_bytes: float  # that one entry takes
    state_bytes: int = 0  # that a session takes beside its entries
    rewinds: int | None = (
        None  # entries that a context is asked to take back, where it keeps a state; None: it has none
    )


def capacity_for(n_entries: int) -> int:
    """Entries that llama.cpp makes room for when asked for this many."""
    return -(-n_entries // _PADDING) * _PADDING


class Handle:
    """A pointer of llama.cpp, freed when nobody refers to it any more.

    Not because the process ends: a thread that nobody waits for may still use it.
    """

    def __init__(self, pointer: int, free: Any, needs: Handle | None = None) -> None:
        """needs: what it lives in."""
        self.pointer = pointer
        self._needs = needs
        weakref.finalize(self, free, pointer).atexit = False


class Context:
    """A cache. While no tree waits to be settled, entry i lies in cell i and belongs to one sequence, the text.

    Entries are named by their positions, as llama.cpp does it.
    """

    def __init__(
        self,
        model: Handle,
        info: ModelInfo,
        options: ContextOptions,
        n_entries: int,
        watching: bool = False,
        source_length: int = 0,
    ) -> None:
        """watching: attention can be read; each operation of a step then asks whether somebody wants to see it.
        source_length: tokens of the longest source that it can encode.

        Raises EngineError where llama.cpp cannot allocate it.
        """
        self._lib = lib = library()
        self._info, self._options = info, options
        self.max_leaves = 1 if options.rewinds is not None else MAX_LEAVES if info.encoder is None else _SOURCE_LEAVES
        self.source_length = max(source_length, MAX_ROWS)  # an encoder reads a source at once
        self.capacity = capacity_for(max(n_entries, source_length))  # no step may be larger than the cache
        self.nbytes = int(options.entry_bytes * self.capacity) + options.state_bytes
        self.watcher = Watcher(info) if watching else None
        free = psutil.virtual_memory().available
        if not options.offload and self.nbytes > free:  # the system would promise the memory and then kill the process
            raise self._too_large(f"{free >> 20} MiB are free")
        with listen() as said, in_engine:
            pointer = lib.llama_init_from_model(model.pointer, self._params())
        if not pointer:
            raise self._too_large(said.reason)
        refused = "set to disabled" in said or "forcing off" in said
        self.flash = not refused if options.flash is None else options.flash and not refused
        self._handle = Handle(pointer, lib.llama_free, model)
        self._memory = lib.llama_get_memory(pointer)
        if not self._memory:
            raise UnsupportedModelError("llama.cpp keeps no cache for this model; it is none that continues text.")
        self._batch = _Batch(lib)
        self._stepped = range(0)  # positions of the last step, until something else changes the cache

    @property
    def rewinds(self) -> int:
        """Of the last entries of a state so many can be taken back, once after each step."""
        return int(self._lib.llama_n_rs_seq(self._handle.pointer))

    def _too_large(self, reason: str) -> EngineError:
        return EngineError(
            f"a cache of {self.capacity} entries cannot be made ({self.nbytes >> 20} MiB of {self._options.keys} keys "
            f"and {self._options.values} values): {reason}. Close other programs, open the session with a smaller "
            "max_context, or choose a smaller kv_dtype."
        )

    def _params(self) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = self.capacity
        params.n_batch = params.n_ubatch = self.source_length
        params.n_outputs_max = MAX_OUTPUTS
        params.n_seq_max = self.max_leaves
        params.kv_unified = True  # else a row cannot belong to several sequences
        params.swa_full = True  # else what a window has left behind is gone, and cannot be gone back to
        params.n_rs_seq = self._options.rewinds or 0
        params.n_threads = params.n_threads_batch = self._options.threads
        params.flash_attn_type = -1 if self._options.flash is None else int(self._options.flash)
        params.type_k, params.type_v = KV_TYPES[self._options.keys], KV_TYPES[self._options.values]
        params.pooling_type = self._lib.LLAMA_POOLING_TYPE_NONE
        params.offload_kqv = params.op_offload = self._options.offload
        params.no_perf = True
        if self.watcher is not None:
            self._callback = self._lib.ggml_backend_sched_eval_callback(self.watcher.look)  # lives as long as we do
            params.cb_eval = self._callback
        return params

    def decode(
        self, tokens: Tokens, positions: Indices, n_logits: int, sequences: Sequence[Sequence[int]] | None, hidden: bool
    ) -> None:
        """Append rows; logits of the last n_logits of them, and with `hidden` the final states of all, can be read.

        sequences: those that each row belongs to; None: all rows continue the text.
        At most MAX_ROWS rows, of them MAX_OUTPUTS that can be read. Raises EngineError, and entries may be left of it.
        """
        n = len(tokens)
        self._batch.fill(tokens, positions, n if hidden else n_logits, sequences)
        if self.watcher is not None:
            self.watcher.begin(n)
        self._stepped = range(0)
        if hidden:
            self._lib.llama_set_embeddings(self._handle.pointer, True)
        try:
            with in_engine:
                code = self._lib.llama_decode(self._handle.pointer, self._batch.struct)
        finally:
            if hidden:
                self._lib.llama_set_embeddings(self._handle.pointer, False)
        if code:
            raise EngineError(f"llama.cpp failed at a step of {n} tokens with code {code}: {recent().reason}.")
        self._stepped = range(int(positions[0]), int(positions[-1]) + 1)

    def encode(self, source: Tokens) -> None:
        """Let the encoder read a source, at most source_length tokens; every later step sees it, and no entry is left.

        Raises EngineError; the source before is forgotten then, too.
        """
        self.clear()
        if self.watcher is not None:
            self.watcher.begin(0)
        n = len(source)
        batch = _Batch(self._lib, n)
        batch.fill(source, np.arange(n), n, [range(self.max_leaves)] * n)  # a row sees what shares a sequence with it
        with in_engine:
            code = self._lib.llama_encode(self._handle.pointer, batch.struct)
        if code:
            raise EngineError(f"llama.cpp failed at a source of {n} tokens with code {code}: {recent().reason}.")

    def logits(self, n_rows: int, n_logits: int) -> Floats:
        """(n_logits, vocab_size) of the last rows of the last decode, which had n_rows; a view of its memory."""
        if n_logits == 0:
            return np.empty((0, self._info.vocab_size), dtype=np.float32)
        at = self._lib.llama_get_logits_ith(self._handle.pointer, n_rows - n_logits)
        return self._view(at, (n_logits, self._info.vocab_size))

    def hidden(self, n_rows: int) -> Floats:
        """(n_rows, hidden_size) of the last decode, which was asked for hidden states; a copy."""
        at = self._lib.llama_get_embeddings(self._handle.pointer)
        return self._view(at, (n_rows, self._info.hidden_size)).copy()

    def _view(self, at: Any, shape: tuple[int, ...]) -> Floats:
        if not at:
            raise EngineError("llama.cpp gave no results for rows that were asked for.")
        return np.asarray(_Memory(ctypes.addressof(at.contents), shape, self._handle))

    def branch(self, n_leaves: int) -> None:
        """Let sequences 0..n_leaves - 1 all see the text."""
        for sequence in range(1, n_leaves):
            self._lib.llama_memory_seq_cp(self._memory, _TEXT, sequence, -1, -1)

    def settle(self, sequence: int = _TEXT) -> None:
        """Forget what does not belong to one sequence, which is the text from here on. Cells may be left empty."""
        self._lib.llama_memory_seq_keep(self._memory, sequence)
        if sequence != _TEXT:
            self._lib.llama_memory_seq_cp(self._memory, sequence, _TEXT, -1, -1)
            self._lib.llama_memory_seq_keep(self._memory, _TEXT)

    def remove(self, first: int, end: int = -1) -> None:
        """Forget positions first..end - 1, to the last where end is -1, in all sequences."""
        if not self._lib.llama_memory_seq_rm(self._memory, -1, first, end):
            raise EngineError("llama.cpp cannot forget single entries of this model's cache.")

    def take_back(self, first: int) -> bool:
        """Forget the text from a position on, if a state can be had that is not of it; nothing has changed where none
        can. llama.cpp keeps states behind the rows of one step, once; asked for another one it gives whatever is there.
        """
        within = self._stepped.start < first < self._stepped.stop
        self._stepped = range(0)
        return within and bool(self._lib.llama_memory_seq_rm(self._memory, _TEXT, first, -1))

    def clear(self) -> None:
        """Forget everything."""
        self._stepped = range(0)
        self._lib.llama_memory_clear(self._memory, False)

    def close_gaps(self, first: int) -> None:
        """Move entries at positions >= first to the first empty cells, in their order. No tree may be open."""
        copy, remove = self._lib.llama_memory_seq_cp, self._lib.llama_memory_seq_rm
        copy(self._memory, _TEXT, _MOVED, first, -1)
        moved = self.state(_MOVED)
        remove(self._memory, _MOVED, -1, -1)
        remove(self._memory, _TEXT, first, -1)
        self.load(moved, _MOVED)
        copy(self._memory, _MOVED, _TEXT, -1, -1)
        remove(self._memory, _MOVED, -1, -1)

    def state(self, sequence: int = _TEXT) -> bytearray:
        """Keys, values and positions of a sequence, in llama.cpp's own form."""
        pointer, size = self._handle.pointer, self._lib.llama_state_seq_get_size(self._handle.pointer, sequence)
        data = bytearray(size)
        with listen() as said, in_engine:
            written = self._lib.llama_state_seq_get_data(pointer, _bytes(data), size, sequence)
        if written != size:
            raise EngineError(f"llama.cpp could not give out its cache: {said.reason}.")
        return data

    def load(self, data: bytearray, sequence: int = _TEXT) -> None:
        """Hold what state() gave, in a sequence that is empty."""
        self._stepped = range(0)
        with listen() as said, in_engine:
            read = self._lib.llama_state_seq_set_data(self._handle.pointer, _bytes(data), len(data), sequence)
        if read != len(data):
            raise EngineError(f"llama.cpp could not take the saved cache: {said.reason}.")


def _bytes(data: bytearray) -> Any:
    return (ctypes.c_uint8 * len(data)).from_buffer(data)


class _Memory:
    """Memory of llama.cpp as numpy sees it. An array over it keeps the context alive, so it never points to nothing."""

    def __init__(self, address: int, shape: tuple[int, ...], owner: Handle) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": "<f4", "version": 3}
        self._owner = owner


class _Batch:
    """A llama_batch over numpy arrays: filled in place, never allocated again."""

    def __init__(self, lib: Any, n_rows: int = MAX_ROWS) -> None:
        self._tokens = np.zeros(n_rows, dtype=np.int32)
        self._positions = np.zeros(n_rows, dtype=np.int32)
        self._counts = np.ones(n_rows, dtype=np.int32)
        self._sequences = np.zeros((n_rows, MAX_LEAVES), dtype=np.int32)
        self._outputs = np.zeros(n_rows, dtype=np.int8)
        starts = self._sequences.ctypes.data + self._sequences.strides[0] * np.arange(n_rows)
        self._starts = starts.astype(np.uintp)  # of the list of sequences of each row
        self._branched = False
        self.struct = lib.llama_batch()
        fields: dict[str, npt.NDArray[Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._counts,
            "seq_id": self._starts,
            "logits": self._outputs,
        }
        kinds = dict(lib.llama_batch._fields_)
        for name, array in fields.items():
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kinds[name]))

    def fill(
        self, tokens: Tokens, positions: Indices, n_outputs: int, sequences: Sequence[Sequence[int]] | None
    ) -> None:
        n = len(tokens)
        self.struct.n_tokens = n
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._outputs[: n - n_outputs] = 0
        self._outputs[n - n_outputs : n] = 1
        if self._branched:
            self._counts[:] = 1
            self._sequences[:, 0] = _TEXT
        self._branched = sequences is not None
        for row, members in enumerate(sequences or ()):
            self._counts[row] = len(members)
            self._sequences[row, : len(members)] = members
