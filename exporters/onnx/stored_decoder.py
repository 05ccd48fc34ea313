"""A decoder as it is stored, as a Decoder: tensors found, permutations undone, losses noted."""

from __future__ import annotations

from typing import Any

from ...runtime.files.decoder_description import (
    INPUT_NORM,
    INPUT_PROJECTION,
    INPUT_TABLE,
    LAYER_SCALE,
    DecoderShape,
    Part,
)
from ...runtime.files.decoder_file import DecoderFile
from ...runtime.files.decoder_shape import decoder_shape
from ..quantize.blocks import Blocks, Floats, floats, halves, unpack
from .decoder import Decoder, Layer, LayerInputs, Linear


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
        return Layer(**parts)

    def _linear(self, part: Part) -> Linear:
        weight = self._matrix(f"{part.tensor}.weight")
        bias = self._floats(f"{part.tensor}.bias") if f"{part.tensor}.bias" in self._file.tensors else None
        if part.rows is not None:
            weight = weight.rows(part.rows) if isinstance(weight, Blocks) else weight[part.rows]
            bias = None if bias is None else bias[part.rows]
        return Linear(weight, bias)

    def _matrix(self, name: str) -> Blocks | Floats:
        made = unpack(self._file.tensors[name])
        if isinstance(made, Blocks) and made.loss:
            self.losses[name] = made.loss
        return made

    def _floats(self, name: str) -> Floats:
        return floats(self._file.tensors[name])
