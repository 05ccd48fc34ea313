"""A decoder as it is stored, as a Decoder: tensors found, permutations undone, losses noted."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...runtime.files.decoder_description import (
    INPUT_NORM,
    INPUT_PROJECTION,
    INPUT_TABLE,
    LAYER_SCALE,
    MLP,
    DecoderShape,
    Part,
)
from ...runtime.files.decoder_file import DecoderFile
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.stacked_tensor import one_of
from ..quantize.blocks import Blocks, Floats, floats, halves, unpack
from .decoder import Decoder, Experts, Layer, LayerInputs, Linear, Mlp


class StoredDecoder:
    """Makes the weights of a decoder from a file; `losses` fills while layers are made."""

    def __init__(self, file: DecoderFile) -> None:
        self._file = file
        self.shape: DecoderShape = decoder_shape(file)
        self.losses: dict[str, float] = {}  # relative error of every requantized tensor

    def decoder(self) -> Decoder:
        """The whole model."""
        return Decoder(
            self.shape,
            self._matrix("token_embd.weight"),
            self._layer,
            self._floats("output_norm.weight"),
            self._matrix("output.weight") if "output.weight" in self._file.tensors else None,
            None if self.shape.layer_input_size is None else self._inputs(),
        )

    def _inputs(self) -> LayerInputs:
        stored = halves(self._file.tensors[INPUT_TABLE])
        table = self._matrix(INPUT_TABLE) if stored is None else stored
        return LayerInputs(table, Linear(self._matrix(INPUT_PROJECTION)), self._floats(INPUT_NORM))

    def _layer(self, i: int) -> Layer:
        parts: dict[str, Any] = {name: self._linear(part) for name, part in self.shape.projections(i).items()}
        parts |= {name: self._floats(tensor) for name, tensor in self.shape.norms(i).items()}
        if self.shape.family.layer_scale:
            parts["scale"] = float(self._floats(LAYER_SCALE.format(i))[0])
        if "gate" in parts:
            parts["mlp"] = Mlp(*(parts.pop(name) for name in MLP))
        sinks = self.shape.sinks(i)
        return Layer(**parts, experts=self._experts(i), sinks=None if sinks is None else self._floats(sinks))

    def _experts(self, i: int) -> Experts | None:
        if self.shape.experts is None:
            return None
        gate = self.shape.shared_gate(i)
        shared = None if gate is None else Linear(self._floats(gate).reshape(1, -1))
        return Experts(self._linear(self.shape.router(i)), partial(self._expert, i), shared)

    def _expert(self, layer: int, i: int) -> Mlp:
        return Mlp(**{name: self._linear(part) for name, part in self.shape.expert(layer, i).items()})

    def _linear(self, part: Part) -> Linear:
        weight = self._matrix(f"{part.tensor}.weight", part.member)
        named = f"{part.tensor}.bias"
        bias = one_of(self._file.tensors[named], part.member).values() if named in self._file.tensors else None
        if part.rows is not None:
            weight = weight.rows(part.rows) if isinstance(weight, Blocks) else weight[part.rows]
            bias = None if bias is None else bias[part.rows]
        return Linear(weight, bias)

    def _matrix(self, name: str, member: int | None = None) -> Blocks | Floats:
        made = unpack(one_of(self._file.tensors[name], member))
        if isinstance(made, Blocks) and made.loss:
            self.losses[name] = max(made.loss, self.losses.get(name, 0.0))
        return made

    def _floats(self, name: str) -> Floats:
        return floats(self._file.tensors[name])
