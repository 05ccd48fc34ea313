"""A GGUF file dequantized to f32: what sessions of the reference engine share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_shape import DecoderShape, decoder_shape
from ...runtime.files.gguf_file import GgufFile
from ...runtime.interfaces import ModelInfo
from ..common.weights import still_open

Matrix: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices (outputs, inputs) of one layer, with the rows of query and key in halves, as rotation wants them."""

    attention_norm: Matrix
    query: Matrix
    key: Matrix
    value: Matrix
    query_bias: Matrix
    key_bias: Matrix
    value_bias: Matrix
    output: Matrix
    mlp_norm: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix


class ReferenceModel:
    """Dequantized weights: four bytes each. stream: layers are dequantized in every step and not kept."""

    def __init__(self, file: GgufFile, digest: str, stream: bool = False) -> None:
        self._file = file
        self.shape: DecoderShape = decoder_shape(file)
        s = self.shape
        self.embedding = self._tensor("token_embd.weight")
        self.head = self._tensor("output.weight") if "output.weight" in file.tensors else self.embedding
        self.final_norm = self._tensor("output_norm.weight")
        self._stream = stream
        self._layers: list[Layer] | None = [] if stream else [self._layer(i) for i in range(s.n_layers)]
        self.cos, self.sin = s.rotary_tables(s.context_length)
        self.info = ModelInfo(
            architecture=s.architecture,
            vocab_size=s.vocab_size,
            context_length=s.context_length,
            n_layers=s.n_layers,
            n_heads=s.n_heads,
            kv_heads=s.kv_heads,
            head_dim=s.head_dim,
            hidden_size=s.hidden_size,
            engine="reference",
            engine_version=np.__version__,
            device="cpu",
            threads=1,
            digest=digest,
        )

    def _tensor(self, name: str) -> Matrix:
        return self._file.tensors[name].values()

    def _bias(self, name: str, size: int) -> Matrix:
        return self._tensor(name) if name in self._file.tensors else np.zeros(size, dtype=np.float32)

    def _layer(self, i: int) -> Layer:
        s, at = self.shape, f"blk.{i}."
        q_order = s.half_order(s.n_heads) if s.permuted else np.arange(s.n_heads * s.head_dim)
        k_order = s.half_order(s.kv_heads) if s.permuted else np.arange(s.kv_heads * s.head_dim)
        return Layer(
            attention_norm=self._tensor(at + "attn_norm.weight"),
            query=self._tensor(at + "attn_q.weight")[q_order],
            key=self._tensor(at + "attn_k.weight")[k_order],
            value=self._tensor(at + "attn_v.weight"),
            query_bias=self._bias(at + "attn_q.bias", len(q_order))[q_order],
            key_bias=self._bias(at + "attn_k.bias", len(k_order))[k_order],
            value_bias=self._bias(at + "attn_v.bias", len(k_order)),
            output=self._tensor(at + "attn_output.weight"),
            mlp_norm=self._tensor(at + "ffn_norm.weight"),
            gate=self._tensor(at + "ffn_gate.weight"),
            up=self._tensor(at + "ffn_up.weight"),
            down=self._tensor(at + "ffn_down.weight"),
        )

    def layers(self) -> Iterator[Layer]:
        """The layers, one after the other."""
        if self._stream:
            yield from map(self._layer, range(self.shape.n_layers))
        else:
            yield from still_open(self._layers)

    def close(self) -> None:
        self._layers = None

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        still_open(self._layers)
