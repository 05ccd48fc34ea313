"""Encoder-decoder models on ONNX Runtime: the encoder is run once for a source, and what it gives stays bound to the
decoder. Graphs: docs/onnx-encoder-decoder.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.interfaces import Floats, Indices, Tokens
from ..common.saved_cache import Array
from ..common.source_session import SourceSession
from .encoder import OrtEncoder
from .loaded_model import OrtModel
from .session import OrtSession

_POSITIONS = "entry_positions"


class OrtEncoderDecoderSession(SourceSession, OrtSession):
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

    def close(self) -> None:
        super().close()
        self._crossed = []

    def _encoder(self) -> OrtEncoder:
        return self._model.encoder()

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
        self._require_source()
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
