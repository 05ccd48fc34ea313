"""The decoder graph: one contract for every exporter, every cache policy and every drafter. See docs/onnx-graph.md.

Inputs, batch 1, n new tokens, T cached and new entries, MAX entries of room:
  input_ids [1, n] int64, position_ids [1, n] int64, logit_rows [m] int64 (rows whose logits are wanted),
  bias [1, 1, n, T] f32 (added to attention scores; T is read off it), past_key_<l>, past_value_<l>
  [1, kv_heads, MAX, head_dim] f32.
Outputs: logits [m, vocab_size], hidden [n, hidden_size] (after the final norm), present_key_<l>, present_value_<l>
  (bound to the same memory as the past), and in the observing form query_<l> [1, n_heads, n, head_dim] after rotation.

Causality is the attention operator's own; the bias only takes away more. Rewinding is a smaller T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_shape import DecoderShape
from ...runtime.progress import Share
from ..quantize.blocks import Blocks, Floats, stack
from .writer import OnnxWriter


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight (rows are outputs) and its bias."""

    weight: Blocks | Floats
    bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer; q and k in halves, not in pairs."""

    attention_norm: Floats
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    mlp_norm: Floats
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's weights, layers made when they are asked for."""

    shape: DecoderShape
    embedding: Blocks | Floats
    layer: Callable[[int], Layer]
    final_norm: Floats
    head: Blocks | Floats | None  # None: tied to the embedding


class DecoderGraph:
    """Builds the graph of a decoder.

    accuracy_level: of MatMulNBits: 4 quantizes activations to int8 per row and block, 0 keeps them in f32.
    """

    def __init__(self, writer: OnnxWriter, decoder: Decoder, accuracy_level: int) -> None:
        self._w, self._decoder, self._level = writer, decoder, accuracy_level
        self._sums: dict[tuple[str, int], str] = {}

    def build(self, progress: Share | None = None) -> None:
        """Add every node, input and output."""
        w, s = self._w, self._decoder.shape
        ids = w.input("input_ids", "int64", [1, "n"])
        w.input("position_ids", "int64", [1, "n"])
        rows = w.input("logit_rows", "int64", ["m"])
        self._lengths(w.input("bias", "float32", [1, 1, "n", "T"]))
        cos, sin = s.rotary_tables(s.context_length)
        w.weight("cos", cos)
        w.weight("sin", sin)
        residual, delta = w.node("Squeeze", [self._embed(ids), self._int("axis0", 0)]), ""
        for i in range(s.n_layers):
            layer = self._decoder.layer(i)
            normed, residual = self._norm(f"l{i}.attention_norm", layer.attention_norm, residual, delta)
            delta = self._attention(i, layer, normed)
            normed, residual = self._norm(f"l{i}.mlp_norm", layer.mlp_norm, residual, delta)
            delta = self._mlp(i, layer, normed)
            if progress:
                progress((i + 1) / s.n_layers)
        normed, _ = self._norm("final_norm", self._decoder.final_norm, residual, delta, "hidden")
        w.output("hidden", "float32", ["n", s.hidden_size])
        self._head(w.node("Gather", [normed, rows], axis=0))

    def _lengths(self, bias: str) -> None:
        """T - 1 and T, as the attention operator wants them, from the bias's own shape."""
        w = self._w
        shape = w.node("Shape", [bias], start=3, end=4)
        total = w.node("Cast", [shape], to=6)
        w.node("Squeeze", [total], "total_length")
        w.node("Sub", [total, w.weight("one", np.array([1], dtype=np.int32))], "last_entry")

    def _embed(self, ids: str) -> str:
        w, table = self._w, self._decoder.embedding
        if not isinstance(table, Blocks):
            return w.node("Gather", [w.weight("embedding", table), ids], axis=0)
        rows, columns = table.shape
        codes = w.weight("embedding.codes", pack(table).reshape(rows, -1))
        scale = w.weight("embedding.scale", table.scale)
        inputs = [codes, ids, scale, w.weight("embedding.zero", pack_zero_points(table).reshape(rows, -1))]
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
        left = w.node("Gather", [w.weight("embedding.residual", table.residual), ids], axis=0)
        blocks = w.weight("embedding.blocks", np.array([0, 0, -1, table.block], dtype=np.int64))
        flat = w.weight("embedding.flat", np.array([0, 0, columns], dtype=np.int64))
        last = w.weight("axis3", np.array([3], dtype=np.int64))
        summed = w.node("Add", [w.node("Reshape", [found, blocks]), w.node("Unsqueeze", [left, last])])
        return w.node("Reshape", [summed, flat])

    def _norm(self, name: str, gain: Floats, residual: str, delta: str, output: str = "") -> tuple[str, str]:
        """(normed, residual + delta)"""
        w, epsilon = self._w, self._decoder.shape.norm_epsilon
        weight = w.weight(name, gain)
        output = output or f"{name}.out"
        if not delta:
            w.nodes("SimplifiedLayerNormalization", [residual, weight], [output], axis=-1, epsilon=epsilon)
            return output, residual
        outputs = [output, "", "", f"{name}.residual"]
        w.nodes("SkipSimplifiedLayerNormalization", [residual, delta, weight], outputs, contrib=True, epsilon=epsilon)
        return output, outputs[3]

    def _attention(self, i: int, layer: Layer, x: str) -> str:
        w, s = self._w, self._decoder.shape
        fused = self._fused(f"l{i}.qkv", x, [layer.query, layer.key, layer.value])
        packed = w.node("Unsqueeze", [fused, self._int("axis0", 0)])
        cache = [
            w.input(f"past_{kind}_{i}", "float32", [1, s.kv_heads, "MAX", s.head_dim]) for kind in ("key", "value")
        ]
        inputs = [packed, "", "", *cache, "last_entry", "total_length", "cos", "sin", "position_ids", "bias"]
        present = [f"present_{kind}_{i}" for kind in ("key", "value")]
        out = w.nodes(
            "GroupQueryAttention",
            inputs,
            [f"l{i}.attended", *present],
            contrib=True,
            num_heads=s.n_heads,
            kv_num_heads=s.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )[0]
        for name in present:
            w.output(name, "float32", [1, s.kv_heads, "MAX", s.head_dim])
        with w.extra():
            self._queries(i, packed)
        return self._linear(f"l{i}.output", w.node("Squeeze", [out, self._int("axis0", 0)]), layer.output)

    def _int(self, name: str, value: int) -> str:
        return self._w.weight(name, np.array([value], dtype=np.int64))

    def _queries(self, i: int, packed: str) -> None:
        w, s = self._w, self._decoder.shape
        ends = (("slice.start", 0), ("slice.end", s.n_heads * s.head_dim), ("axis2", 2))
        query = w.node("Slice", [packed, *(self._int(name, at) for name, at in ends)])
        split = w.weight("heads", np.array([0, 0, s.n_heads, s.head_dim], dtype=np.int64))
        heads = w.node("Transpose", [w.node("Reshape", [query, split])], perm=[0, 2, 1, 3])
        w.node("RotaryEmbedding", [heads, "position_ids", "cos", "sin"], f"query_{i}", contrib=True, interleaved=0)
        w.output(f"query_{i}", "float32", [1, s.n_heads, "n", s.head_dim])

    def _mlp(self, i: int, layer: Layer, x: str) -> str:
        w, size = self._w, self._decoder.shape.ffn_size
        both = self._fused(f"l{i}.gate_up", x, [layer.gate, layer.up])
        sizes = w.weight("gate_up.sizes", np.array([size, size], dtype=np.int64))
        gate, up = w.nodes("Split", [both, sizes], [f"l{i}.gate", f"l{i}.up"], axis=-1)
        active = w.node("Mul", [w.node("QuickGelu", [gate], contrib=True, alpha=1.0), up])  # alpha 1: SiLU
        return self._linear(f"l{i}.down", active, layer.down)

    def _fused(self, name: str, x: str, parts: list[Linear]) -> str:
        """Several projections of one input, in one multiplication where their forms allow it. Bit for bit the same:
        the columns of a product do not see each other."""
        weights = [p.weight for p in parts]
        blocks = [b for b in weights if isinstance(b, Blocks)]
        dense = [b for b in weights if not isinstance(b, Blocks)]
        fused: Blocks | Floats | None = stack(blocks) if not dense else None
        if not blocks:
            fused = np.concatenate(dense)
        if fused is None:
            outs = [self._linear(f"{name}.{i}", x, part) for i, part in enumerate(parts)]
            return self._w.node("Concat", outs, axis=-1)
        bias = None
        if any(p.bias is not None for p in parts):
            sizes = [w.shape[0] for w in weights]
            bias = np.concatenate(
                [np.zeros(n, np.float32) if p.bias is None else p.bias for p, n in zip(parts, sizes, strict=True)]
            )
        return self._linear(name, x, Linear(fused, bias))

    def _linear(self, name: str, x: str, linear: Linear, output: str = "", like: str | None = None) -> str:
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

    def _head(self, x: str) -> None:
        decoder = self._decoder
        tied = decoder.head is None
        weight = decoder.embedding if decoder.head is None else decoder.head
        like = "embedding.codes" if tied and isinstance(weight, Blocks) else None
        self._linear("head", x, Linear(weight), "logits", like)
        self._w.output("logits", "float32", ["m", decoder.shape.vocab_size])


def pack(blocks: Blocks) -> npt.NDArray[np.uint8]:
    """Codes as MatMulNBits stores them: (rows, n_blocks, block * bits / 8), low nibble first."""
    if blocks.bits == 8:
        return blocks.codes
    return blocks.codes[..., 0::2] | (blocks.codes[..., 1::2] << np.uint8(4))


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
