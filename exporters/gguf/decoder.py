"""A GGUF file as a Decoder: tensors found, permutations undone, losses noted."""

from __future__ import annotations

from ...runtime.files.decoder_shape import DecoderShape, decoder_shape
from ...runtime.files.gguf_file import GgufFile
from ..onnx.decoder_graph import Decoder, Layer, Linear
from ..quantize.blocks import Blocks, Floats, floats, unpack


class GgufDecoder:
    """Makes the weights of a decoder from a GGUF file; `losses` fills while layers are made."""

    def __init__(self, file: GgufFile) -> None:
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
        )

    def _layer(self, i: int) -> Layer:
        s, at = self.shape, f"blk.{i}."
        return Layer(
            self._floats(at + "attn_norm.weight"),
            self._linear(at + "attn_q", s.n_heads if s.permuted else None),
            self._linear(at + "attn_k", s.kv_heads if s.permuted else None),
            self._linear(at + "attn_v"),
            self._linear(at + "attn_output"),
            self._floats(at + "ffn_norm.weight"),
            self._linear(at + "ffn_gate"),
            self._linear(at + "ffn_up"),
            self._linear(at + "ffn_down"),
        )

    def _linear(self, name: str, permuted_heads: int | None = None) -> Linear:
        weight = self._matrix(f"{name}.weight")
        bias = self._floats(f"{name}.bias") if f"{name}.bias" in self._file.tensors else None
        if permuted_heads is not None:
            order = self.shape.half_order(permuted_heads)
            weight = weight.rows(order) if isinstance(weight, Blocks) else weight[order]
            bias = None if bias is None else bias[order]
        return Linear(weight, bias)

    def _matrix(self, name: str) -> Blocks | Floats:
        made = unpack(self._file.tensors[name])
        if isinstance(made, Blocks) and made.loss:
            self.losses[name] = made.loss
        return made

    def _floats(self, name: str) -> Floats:
        return floats(self._file.tensors[name])
