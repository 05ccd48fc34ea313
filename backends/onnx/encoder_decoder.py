"""Encoder-decoder models on ONNX Runtime: the encoder is run once for a source, and what it gives stays bound to the
decoder. Graphs: docs/onnx-encoder-decoder.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.encoder_input import checked_source
from ...runtime.errors import OptionError
from ...runtime.interfaces import Floats, Indices, Tokens
from ..common.saved_cache import Array, Layout, pack, unpack
from .loaded_model import OrtModel
from .session import OrtSession

_POSITIONS = "entry_positions"


class OrtEncoderDecoderSession(OrtSession):
    """One cache of a decoder, and the keys and values of the source that it answers about."""

    def __init__(self, model: OrtModel, max_context: int) -> None:
        super().__init__(model, max_context)
        self.abilities |= {"encode"}
        if not model.observes:
            self.abilities -= {"queries"}
        self._source: Tokens | Floats | None = None
        self._crossed: list[tuple[str, Any]] = []  # shared with forks, and never written

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(int(np.prod(value.shape())) * 4 for _, value in self._crossed)

    def encode(self, source: Tokens | Floats) -> None:
        self._rows.check_open()
        encoder = self._model.encoder()
        read = checked_source(source, encoder.info, self.info.vocab_size)
        self._see(read.copy(), encoder.read(read))
        self._rows.replace(np.empty(0, dtype=np.int64))

    def save(self) -> bytes:
        """With the source, which is read again."""
        self._rows.check_settled()
        source = np.empty(0, dtype=np.int64) if self._source is None else self._source
        return pack(self.info, self.positions, [*self._entries(), source])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        positions, (*entries, source) = unpack(self.info, state, self.max_context, self._layout)
        if source.size:
            self.encode(source.astype(np.float32) if source.ndim > 1 else source.astype(np.int64))
        self._fill(positions, entries)

    def close(self) -> None:
        super().close()
        self._crossed = []

    def _layout(self, n: int) -> list[Layout]:
        assert self.info.encoder is not None
        kind: Layout = (np.int64, (None,))
        if self.info.encoder.source_kind == "audio":
            kind = (np.float32, (self.info.encoder.bins, None))
        return [*super()._layout(n), kind]

    def _empty(self, max_context: int) -> OrtEncoderDecoderSession:
        other = OrtEncoderDecoderSession(self._model, max_context)
        other._source, other._crossed = self._source, self._crossed
        return other

    def _see(self, source: Tokens | Floats, crossed: list[tuple[str, Any]]) -> None:
        self._source, self._crossed = source, crossed
        for binding in self._bindings.values():  # to make them anew takes longer than a step of a small model
            self._bind_source(binding)

    def _plan(self, tokens: Tokens, n_logits: int, parents: Indices | None) -> Indices:
        positions = super()._plan(tokens, n_logits, parents)
        if self._source is None:
            raise OptionError("nothing was encoded yet: give the session a source first, with encode().")
        return positions

    def _biases(self, positions: Indices, total: int, parents: Indices | None) -> dict[str, Array]:
        inputs = super()._biases(positions, total, parents)
        if self._model.relative:
            inputs[_POSITIONS] = self._rows.with_new(positions)
        return inputs

    def _bind(self, runner: Any, step: Any) -> Any:
        binding = super()._bind(runner, step)
        self._bind_source(binding)
        return binding

    def _bind_source(self, binding: Any) -> None:
        for name, value in self._crossed:
            binding.bind_ortvalue_input(name, value)
