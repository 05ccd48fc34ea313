"""A decoder's file dequantized to f32: what sessions of the reference engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_description import (
    INPUT_NORM,
    INPUT_PROJECTION,
    INPUT_TABLE,
    LAYER_SCALE,
    MLP,
    DecoderShape,
    LayerKind,
    Part,
)
from ...runtime.files.decoder_file import DecoderFile, StoredTensor
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.gguf_file import GgufTensor
from ...runtime.files.safetensors_file import SafeTensor
from ...runtime.files.stacked_tensor import one_of
from ...runtime.interfaces import ModelInfo
from ..common.weights import still_open
from .mlp import Experts, Matrix, Mlp

_BIASED = ("query", "key", "value", "output")


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices (outputs, inputs) of one layer, with the rows of query and key in halves, as rotation wants them.

    Norms and matrices that a layer does not have are None; biases that it does not have are zeros.
    """

    kind: LayerKind
    query: Matrix
    output: Matrix
    query_bias: Matrix
    output_bias: Matrix
    key: Matrix | None = None  # None: it attends to the keys and values of another layer
    value: Matrix | None = None  # None: its keys are its values
    key_bias: Matrix | None = None
    value_bias: Matrix | None = None
    input_gate: Matrix | None = None
    input_projection: Matrix | None = None
    scale: float = 1.0
    mlp: Mlp | None = None
    experts: Experts | None = None
    sinks: Matrix | None = None  # (n_heads,)
    attention_norm: Matrix | None = None
    attention_post_norm: Matrix | None = None
    mlp_norm: Matrix | None = None
    mlp_post_norm: Matrix | None = None
    query_norm: Matrix | None = None
    key_norm: Matrix | None = None
    input_post_norm: Matrix | None = None


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What the layers are given beside what the last one gave: a second table of tokens, and a projection.

    table: larger than all else together, so its rows are read when they are asked for.
    """

    table: StoredTensor
    projection: Matrix
    norm: Matrix

    def of(self, tokens: npt.NDArray[np.int64], x: Matrix, epsilon: float) -> Matrix:
        """(n_layers, n, size) for tokens whose scaled embeddings are x."""
        size = len(self.norm)
        projected = (x @ self.projection.T * np.float32(x.shape[1] ** -0.5)).reshape(len(x), -1, size)
        power = np.mean(projected * projected, axis=-1, keepdims=True, dtype=np.float32)
        projected = self.norm * projected / np.sqrt(power + np.float32(epsilon))
        if isinstance(self.table, GgufTensor | SafeTensor):
            rows = self.table.rows(tokens).values()
        else:
            rows = self.table.values()[tokens]
        found = rows.reshape(len(x), -1, size) * np.float32(size**0.5)
        return np.asarray((projected + found) * np.float32(2**-0.5), dtype=np.float32).swapaxes(0, 1)


class ReferenceModel:
    """Dequantized weights: four bytes each. stream: layers are dequantized in every step and not kept."""

    def __init__(self, file: DecoderFile, digest: str, stream: bool = False) -> None:
        self._file = file
        self.shape: DecoderShape = decoder_shape(file)
        s = self.shape
        self.embedding = self._tensor("token_embd.weight")
        self.head = self._tensor("output.weight") if "output.weight" in file.tensors else self.embedding
        self.final_norm = self._tensor("output_norm.weight")
        self.inputs: LayerInputs | None = None
        if s.layer_input_size is not None:
            self.inputs = LayerInputs(
                file.tensors[INPUT_TABLE], self._tensor(INPUT_PROJECTION), self._tensor(INPUT_NORM)
            )
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
            uneven=not s.even,
        )

    def _tensor(self, name: str) -> Matrix:
        return self._file.tensors[name].values()

    def _layer(self, i: int) -> Layer:
        parts = self.shape.projections(i)
        matrices = {name: self._part(part, ".weight") for name, part in parts.items()}
        mlp = Mlp(*(matrices.pop(name) for name in MLP)) if "gate" in matrices else None
        biases = {f"{name}_bias": self._bias(parts[name], len(matrices[name])) for name in _BIASED if name in parts}
        norms = {name: self._tensor(tensor) for name, tensor in self.shape.norms(i).items()}
        scale = float(self._tensor(LAYER_SCALE.format(i))[0]) if self.shape.family.layer_scale else 1.0
        sinks = self.shape.sinks(i)
        made: dict[str, Any] = {**matrices, **biases, **norms, "mlp": mlp, "experts": self._experts(i)}
        return Layer(self.shape.layers[i], **made, scale=scale, sinks=None if sinks is None else self._tensor(sinks))

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
