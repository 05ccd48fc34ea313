"""A decoder's file dequantized to f32: what sessions of the reference engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...runtime.files.decoder_description import MLP, DecoderShape, LayerKind, Part
from ...runtime.files.decoder_file import DecoderFile
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.stacked_tensor import one_of
from ...runtime.interfaces import ModelInfo
from ..common.weights import still_open
from .mlp import Experts, Matrix, Mlp

_BIASED = ("query", "key", "value", "output")


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices (outputs, inputs) of one layer, with the rows of query and key in halves, as rotation wants them.

    Norms that a model does not have are None; biases that it does not have are zeros.
    """

    kind: LayerKind
    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    query_bias: Matrix
    key_bias: Matrix
    value_bias: Matrix
    output_bias: Matrix
    mlp: Mlp | None = None
    experts: Experts | None = None
    sinks: Matrix | None = None  # (n_heads,)
    attention_norm: Matrix | None = None
    attention_post_norm: Matrix | None = None
    mlp_norm: Matrix | None = None
    mlp_post_norm: Matrix | None = None
    query_norm: Matrix | None = None
    key_norm: Matrix | None = None


class ReferenceModel:
    """Dequantized weights: four bytes each. stream: layers are dequantized in every step and not kept."""

    def __init__(self, file: DecoderFile, digest: str, stream: bool = False) -> None:
        self._file = file
        self.shape: DecoderShape = decoder_shape(file)
        s = self.shape
        self.embedding = self._tensor("token_embd.weight")
        self.head = self._tensor("output.weight") if "output.weight" in file.tensors else self.embedding
        self.final_norm = self._tensor("output_norm.weight")
        self._stream = stream
        self._layers: list[Layer] | None = [] if stream else [self._layer(i) for i in range(s.n_layers)]
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

    def _layer(self, i: int) -> Layer:
        parts = self.shape.projections(i)
        matrices = {name: self._part(part, ".weight") for name, part in parts.items()}
        mlp = Mlp(*(matrices.pop(name) for name in MLP)) if "gate" in matrices else None
        biases = {f"{name}_bias": self._bias(parts[name], len(matrices[name])) for name in _BIASED}
        norms = {name: self._tensor(tensor) for name, tensor in self.shape.norms(i).items()}
        sinks = self.shape.sinks(i)
        made: dict[str, Any] = {**matrices, **biases, **norms, "mlp": mlp, "experts": self._experts(i)}
        return Layer(self.shape.layers[i], **made, sinks=None if sinks is None else self._tensor(sinks))

    def _experts(self, i: int) -> Experts | None:
        sizes, mixture = self.shape.experts, self.shape.family.mixture
        if sizes is None or mixture is None:
            return None
        router, gate = self.shape.router(i), self.shape.shared_gate(i)
        expert: Callable[[int], Mlp] = partial(self._expert, i)
        if not self._stream:
            expert = [expert(number) for number in range(sizes.count)].__getitem__
        return Experts(
            self._part(router, ".weight"),
            self._part(router, ".bias") if mixture.biased else None,
            expert,
            used=sizes.used,
            whole=mixture.whole,
            shared_gate=None if gate is None else self._tensor(gate).reshape(1, -1),
        )

    def _expert(self, layer: int, i: int) -> Mlp:
        parts, mixture = self.shape.expert(layer, i), self.shape.family.mixture
        made = {name: self._part(part, ".weight") for name, part in parts.items()}
        if mixture is not None and mixture.biased:
            made |= {f"{name}_bias": self._part(part, ".bias") for name, part in parts.items()}
        return Mlp(**made)

    def _part(self, part: Part, kind: str) -> Matrix:
        values = one_of(self._file.tensors[part.tensor + kind], part.member).values()
        return values if part.rows is None else values[part.rows]

    def _bias(self, part: Part, size: int) -> Matrix:
        return self._part(part, ".bias") if f"{part.tensor}.bias" in self._file.tensors else np.zeros(size, np.float32)

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
