"""Encoder-decoder models on ONNX Runtime: the encoder is run once for a source, and what it gives stays bound to the
decoder. Graphs: docs/onnx-seq2seq.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.encoder_input import checked_source
from ...runtime.errors import EngineError, ModelFileError, OptionError
from ...runtime.files.manifest import Manifest
from ...runtime.interfaces import EncoderInfo, Floats, Indices, Tokens
from ...runtime.leaving import in_engine
from ..common.saved_cache import Array, Layout, pack, unpack
from .devices import shapes_of
from .session import OrtSession

if TYPE_CHECKING:
    from .backend import OrtWeights

_TEXT, _SOUND = "source_ids", "source_features"
_POSITIONS = "entry_positions"


class OrtEncoder:
    """The encoder graph of a bundle.

    runner: its inference session; decoder: names of the decoder's inputs.
    """

    def __init__(self, runner: Any, path: Path, manifest: Manifest, decoder: frozenset[str]) -> None:
        shapes = shapes_of(runner, path)
        self.crossed = sorted(name for name in shapes if name.startswith(("cross_key_", "cross_value_")))
        self._input = _SOUND if manifest.source_kind == "audio" else _TEXT
        wanted = sorted(name for name in decoder if name.startswith("cross_"))
        if self._input not in shapes or not wanted or wanted != self.crossed:
            raise ModelFileError(
                f"{path} is no encoder for the decoder beside it: it takes {self._input} and gives "
                f"{', '.join(wanted) or 'cross_key_<l> and cross_value_<l>'}, or should. Build the bundle again."
            )
        if not manifest.decoder_start:
            raise ModelFileError(
                f"{path.parent} does not say what its answers begin with (decoder_start). Build the bundle again."
            )
        bins, frames = shapes[_SOUND][1:] if self._input == _SOUND else (None, None)
        limit = frames if isinstance(frames, int) else manifest.source_limit
        self.info = EncoderInfo(manifest.decoder_start, limit, manifest.source_kind, bins)
        self._runner = runner

    def read(self, source: Tokens | Floats) -> list[tuple[str, Any]]:
        """Keys and values of the source by the names of the decoder's inputs."""
        try:
            binding = self._runner.io_binding()
            binding.bind_cpu_input(self._input, source[None])
            for name in self.crossed:
                binding.bind_output(name)
            with in_engine:
                self._runner.run_with_iobinding(binding)
            return list(zip(self.crossed, binding.get_outputs(), strict=True))
        except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
            raise EngineError(f"ONNX Runtime failed at the encoder: {error}") from error


class OrtEncoderDecoderSession(OrtSession):
    """One cache of a decoder, and the keys and values of the source that it answers about."""

    def __init__(self, weights: OrtWeights, ort: Any, max_context: int) -> None:
        super().__init__(weights, ort, max_context)
        self.abilities |= {"encode"}
        if not weights.observes:
            self.abilities -= {"queries"}
        self._source: Tokens | Floats | None = None
        self._crossed: list[tuple[str, Any]] = []  # shared with forks, and never written

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(int(np.prod(value.shape())) * 4 for _, value in self._crossed)

    def encode(self, source: Tokens | Floats) -> None:
        self._rows.check_open()
        encoder = self._weights.encoder()
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
        other = OrtEncoderDecoderSession(self._weights, self._ort, max_context)
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
        if self._weights.relative:
            inputs[_POSITIONS] = self._rows.with_new(positions)
        return inputs

    def _bind(self, runner: Any, step: Any) -> Any:
        binding = super()._bind(runner, step)
        self._bind_source(binding)
        return binding

    def _bind_source(self, binding: Any) -> None:
        for name, value in self._crossed:
            binding.bind_ortvalue_input(name, value)
