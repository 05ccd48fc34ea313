"""One infer request over bound memory: a step tells it only what changed since the last one."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.errors import EngineError
from ...runtime.interfaces import Floats, Indices, Tokens
from ...runtime.leaving import in_engine
from .block_pool import BlockPool, Blocks
from .graph import reason

Bound = TypeVar("Bound", bound=npt.NDArray[np.generic])


class BoundRequest:
    """An infer request whose inputs and outputs are numpy arrays that the engine reads and writes in place."""

    def __init__(self, compiled: Any) -> None:
        from openvino import Tensor

        self._tensor, self._request = Tensor, compiled.create_infer_request()
        self._inputs = {name: i for i, port in enumerate(compiled.inputs) for name in port.names}
        self._outputs = {name: i for i, port in enumerate(compiled.outputs) for name in port.names}

    def output(self, name: str) -> Floats:
        """A copy of an output of the last step."""
        found: Floats = self._request.get_output_tensor(self._outputs[name]).data.copy()
        return found

    def _infer(self) -> None:
        try:
            with in_engine:
                self._request.start_async()
                self._request.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {reason(error)}.") from error

    def _bound(self, name: str, array: Bound) -> Bound:
        """The same array, an input that the engine reads from now on."""
        self._request.set_input_tensor(self._inputs[name], self._tensor(array, shared_memory=True))
        return array

    def _written(self, name: str, array: Bound) -> Bound:
        """The same array, an output that the engine writes from now on."""
        self._request.set_output_tensor(self._outputs[name], self._tensor(array, shared_memory=True))
        return array


class Request(BoundRequest):
    """A step of a decoder with PagedAttention, whose inputs are as named in graph.py."""

    def __init__(self, compiled: Any, pool: BlockPool, vocab_size: int) -> None:
        super().__init__(compiled)
        self._pool, self._generation = pool, 0
        self._ids = self._positions = np.empty(0, dtype=np.int64)
        self._logit_rows = np.empty(0, dtype=np.int32)
        self._logits: Floats = np.empty((0, vocab_size), dtype=np.float32)
        self._past = self._bound("past_lens", np.zeros(1, dtype=np.int32))
        self._total = self._bound("max_context_len", np.zeros((), dtype=np.int32))
        self._begins = self._bound("subsequence_begins", np.zeros(2, dtype=np.int32))
        self._block_begins = self._bound("block_indices_begins", np.zeros(2, dtype=np.int32))
        self._mask_begins = self._bound("qq_bias_begins", np.zeros(2, dtype=np.int32))
        self._blocks_of: npt.NDArray[np.generic] | None = None  # the array that block_indices is a part of
        self._masked = False
        self._bind_mask(None)

    def run(
        self,
        tokens: Tokens,
        positions: Indices,
        n_logits: int,
        n_past: int,
        blocks: Blocks,
        mask: npt.NDArray[np.bool_] | None,
    ) -> Floats:
        """Logits (n_logits, vocab_size), in memory that the next call writes over.

        blocks: those that hold the past and the new entries; more or less of an array that stays the same.
        mask: (n, n), which rows see which; None: each row sees those before it and itself.
        """
        width = len(tokens)
        self._bind(width, n_logits, blocks)
        if self._masked or mask is not None:
            self._bind_mask(mask)
        self._ids[:], self._positions[:] = tokens, positions
        self._past[0], self._total[...] = n_past, n_past + width
        self._infer()
        return self._logits[:n_logits]

    def _bind(self, width: int, n_logits: int, blocks: Blocks) -> None:
        if self._generation != self._pool.generation:
            for i, tensor in enumerate(self._pool.tensors):
                name = f"{'value' if i % 2 else 'key'}_cache.{i // 2}"
                self._request.set_input_tensor(self._inputs[name], tensor)
            self._generation = self._pool.generation
        if width != len(self._ids) or n_logits != len(self._logit_rows):
            self._bind_rows(width, n_logits)
        if len(blocks) != self._block_begins[1] or blocks.base is not self._blocks_of:
            self._bound("block_indices", blocks)
            self._block_begins[1], self._blocks_of = len(blocks), blocks.base

    def _bind_rows(self, width: int, n_logits: int) -> None:
        self._ids = self._bound("input_ids", np.empty(width, dtype=np.int64))
        self._positions = self._bound("position_ids", np.empty(width, dtype=np.int64))
        self._begins[1] = width
        self._logit_rows = self._bound("logit_rows", np.arange(width - n_logits, width, dtype=np.int32))
        if n_logits > len(self._logits):
            self._logits = np.empty((n_logits, self._logits.shape[1]), dtype=np.float32)
        self._written("logits", self._logits[:n_logits])

    def _bind_mask(self, mask: npt.NDArray[np.bool_] | None) -> None:
        seen = self._bound("qq_bias", np.empty(0, np.uint8) if mask is None else mask.astype(np.uint8).reshape(-1))
        self._mask_begins[1] = len(seen)
        self._masked = mask is not None
