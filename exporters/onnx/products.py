"""Products with the weights of a decoder, and rows of its tables, of quantized ones without making them whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_family import CLAMP, CLAMPED_SLOPE, Activation
from ..quantize.blocks import Blocks, Floats, Halves, stack
from .decoder import Linear, Mlp
from .writer import OnnxWriter


class Products:
    """Adds products to a graph.

    accuracy_level: of MatMulNBits: 4 quantizes activations to int8 per row and block, 0 keeps them in f32.
    """

    def __init__(self, writer: OnnxWriter, accuracy_level: int) -> None:
        self._w, self._level = writer, accuracy_level
        self._sums: dict[tuple[str, int], str] = {}

    def fused(self, name: str, x: str, parts: list[Linear]) -> str:
        """Several projections of one input, in one multiplication where their forms allow it. Bit for bit the same:
        the columns of a product do not see each other."""
        weights = [p.weight for p in parts]
        blocks = [b for b in weights if isinstance(b, Blocks)]
        dense = [b for b in weights if not isinstance(b, Blocks)]
        fused: Blocks | Floats | None = stack(blocks) if not dense else None
        if not blocks:
            fused = np.concatenate(dense)
        if fused is None:
            outs = [self.linear(f"{name}.{i}", x, part) for i, part in enumerate(parts)]
            return self._w.node("Concat", outs, axis=-1)
        bias = None
        if any(p.bias is not None for p in parts):
            sizes = [w.shape[0] for w in weights]
            bias = np.concatenate(
                [np.zeros(n, np.float32) if p.bias is None else p.bias for p, n in zip(parts, sizes, strict=True)]
            )
        return self.linear(name, x, Linear(fused, bias))

    def mlp(self, name: str, x: str, mlp: Mlp, activation: Activation) -> str:
        """A gated MLP. name: of its weights."""
        w, size = self._w, mlp.gate.weight.shape[0]
        both = self.fused(f"{name}gate_up", x, [mlp.gate, mlp.up])
        sizes = w.weight(f"gate_up.sizes.{size}", np.array([size, size], dtype=np.int64))
        gate, up = w.nodes("Split", [both, sizes], [f"{name}gate", f"{name}up"], axis=-1)
        if activation != "clamped":
            active = self.active(gate, activation)
        else:
            low, high, one = (w.weight(f"mlp.{x:g}", np.array(x, np.float32)) for x in (-CLAMP, CLAMP, 1.0))
            active = w.node("QuickGelu", [w.node("Clip", [gate, "", high])], contrib=True, alpha=CLAMPED_SLOPE)
            up = w.node("Add", [w.node("Clip", [up, low, high]), one])
        return self.linear(f"{name}down", w.node("Mul", [active, up]), mlp.down)

    def active(self, x: str, activation: Activation) -> str:
        """GELU or SiLU of x."""
        if activation == "gelu":
            return self._w.node("Gelu", [x], approximate="tanh")
        return self._w.node("QuickGelu", [x], contrib=True, alpha=1.0)  # alpha 1: SiLU

    def linear(self, name: str, x: str, linear: Linear, output: str = "", like: str | None = None) -> str:
        w, weight = self._w, linear.weight
        bias = "" if linear.bias is None else w.weight(f"{name}.bias", linear.bias)
        if not isinstance(weight, Blocks):
            inputs = [x, w.weight(f"{name}.weight", weight.T)]
            return w.node("Gemm", [*inputs, bias], output) if bias else w.node("MatMul", inputs, output)
        residual = weight.residual
        codes = w.weight(f"{name}.codes", pack(weight), like)
        scale = w.weight(f"{name}.scale", weight.scale.reshape(-1))
        zero = "" if _default_zero(weight) else w.weight(f"{name}.zero", pack_zero_points(weight))
        out = w.node(
            "MatMulNBits",
            [x, codes, scale, *([zero, "", bias] if bias else [zero] if zero else [])],
            output if residual is None else "",
            contrib=True,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=weight.bits,
            block_size=weight.block,
            accuracy_level=self._level,
        )
        if residual is None:
            return out
        return w.node("Gemm", [self._block_sums(x, weight), w.weight(f"{name}.residual", residual.T), out], output)

    def _block_sums(self, x: str, weight: Blocks) -> str:
        """Sums of x over each block of columns: what the residual of a minimum is multiplied with."""
        key = (x, weight.block)
        if key not in self._sums:
            columns, block = weight.shape[1], weight.block
            ones = np.repeat(np.eye(columns // block, dtype=np.float32), block, axis=0)
            self._sums[key] = self._w.node("MatMul", [x, self._w.weight(f"block_sums.{columns}.{block}", ones)])
        return self._sums[key]


def looked_up(w: OnnxWriter, ids: str, name: str, table: Blocks | Floats | Halves) -> str:
    """Rows of a table, (1, n, columns)."""
    if isinstance(table, Halves):
        return w.node("Cast", [w.node("Gather", [w.bits(name, table.bits, table.kind), ids], axis=0)], to=1)
    if not isinstance(table, Blocks):
        return w.node("Gather", [w.weight(name, table), ids], axis=0)
    rows, columns = table.shape
    codes = w.weight(f"{name}.codes", pack(table).reshape(rows, -1))
    scale = w.weight(f"{name}.scale", table.scale)
    inputs = [codes, ids, scale, w.weight(f"{name}.zero", pack_zero_points(table).reshape(rows, -1))]
    found = w.node(
        "GatherBlockQuantized",
        inputs,
        contrib=True,
        bits=table.bits,
        block_size=table.block,
        gather_axis=0,
        quantize_axis=1,
    )
    if table.residual is None:
        return found
    left = w.node("Gather", [w.weight(f"{name}.residual", table.residual), ids], axis=0)
    blocks = w.weight(f"{name}.blocks", np.array([0, 0, -1, table.block], dtype=np.int64))
    flat = w.weight(f"{name}.flat", np.array([0, 0, columns], dtype=np.int64))
    last = w.weight("axis3", np.array([3], dtype=np.int64))
    summed = w.node("Add", [w.node("Reshape", [found, blocks]), w.node("Unsqueeze", [left, last])])
    return w.node("Reshape", [summed, flat])


def pack(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Codes as MatMulNBits stores them: (rows, n_blocks, block * bits / 8), low nibble first."""
    if blocks.bits == 8:
        return blocks.codes
    pairs = np.ascontiguousarray(blocks.codes).view("<u2")  # the first code in the low byte
    return (pairs | pairs >> np.uint16(4)).astype(np.uint8)


def _default_zero(blocks: Blocks) -> bool:
    return isinstance(blocks.zero_point, int) and blocks.zero_point == 1 << (blocks.bits - 1)


def pack_zero_points(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Zero points, (rows * ceil(n_blocks * bits / 8),)."""
    zero = np.broadcast_to(np.asarray(blocks.zero_point, dtype=np.uint8), blocks.scale.shape)
    if blocks.bits == 8:
        return np.ascontiguousarray(zero).reshape(-1)
    if zero.shape[1] % 2:
        zero = np.concatenate([zero, np.zeros((len(zero), 1), dtype=np.uint8)], axis=1)
    return (zero[:, 0::2] | (zero[:, 1::2] << np.uint8(4))).reshape(-1)
