"""The decoder graph of devices that compile fixed shapes only: standard ONNX operators, and a cache the host keeps.

Inputs, batch 1, n new tokens, a window of W entries, m rows of logits:
  input_ids [1, n] int64, position_ids [1, n] int64, logit_rows [m] int64,
  mask [1, 1, n, W] f32 (added to attention scores: 0 or so negative that nothing is left),
  place [1, 1, W, n] f32 (1 where a window column is a new token's, else 0),
  past_key_<l>, past_value_<l> [1, kv_heads, W, head_dim] f32, zero wherever no entry is.
Outputs: logits [m, vocab_size], hidden [n, hidden_size] (after the final norm), and the new rows alone,
  new_key_<l>, new_value_<l> [1, kv_heads, n, head_dim], which the host writes into its window.

Within the step `place` puts the new rows into the columns where the host will write them, so that an entry is added up
at the same place whichever step made it: appended behind the window it would get other bits there. n, W and m are
symbols; every device fixes them as it opens the graph, and the weights lie on disk once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.decoder_description import DecoderShape
from ...runtime.progress import Share
from ..quantize.blocks import Blocks, Floats, stack
from .decoder import Decoder, Layer, Linear
from .writer import OnnxWriter


def refuse_beyond_llama(shape: DecoderShape) -> None:
    """Raise UnsupportedModelError for a decoder that this graph cannot express."""
    why = shape.beyond_llama()
    if why is not None:
        raise UnsupportedModelError(
            f"the graph of fixed shapes cannot express this {shape.architecture} yet, because {why}. The engines onnx "
            "and llamacpp run it on the processor."
        )


class StaticGraph:
    """Builds the graph of a decoder out of standard operators; quantized weights are DequantizeLinear by blocks.

    norm: "rms" divides by the root of a mean square; "lp" by the length, times the root of the width, without epsilon:
        for devices of integers, to which squares are too wide.
    """

    def __init__(self, writer: OnnxWriter, decoder: Decoder, norm: Literal["rms", "lp"] = "rms") -> None:
        refuse_beyond_llama(decoder.shape)
        self._w, self._decoder, self._norm_kind = writer, decoder, norm
        self._sums: dict[tuple[str, int], str] = {}

    def build(self, progress: Share | None = None) -> None:
        """Add every node, input and output."""
        w, s = self._w, self._decoder.shape
        ids = w.input("input_ids", "int64", [1, "n"])
        positions = w.input("position_ids", "int64", [1, "n"])
        rows = w.input("logit_rows", "int64", ["m"])
        w.input("mask", "float32", [1, 1, "n", "W"])
        w.input("place", "float32", [1, 1, "W", "n"])
        for name, table in zip(("cos", "sin"), s.rotations[0].tables(s.context_length), strict=True):
            found = w.node("Gather", [w.weight(f"{name}.table", np.concatenate([table, table], axis=1)), positions])
            w.node("Unsqueeze", [found, self._ints("axis1", 1)], name)
        x = self._embed(w.node("Reshape", [ids, self._ints("flat", -1)]))
        for i in range(s.n_layers):
            layer = self._decoder.layer(i)
            attended = self._attention(i, layer, self._norm(f"l{i}.attention_norm", layer.attention_norm, x))
            x = w.node("Add", [x, attended])
            x = w.node("Add", [x, self._mlp(i, layer, self._norm(f"l{i}.mlp_norm", layer.mlp_norm, x))])
            if progress:
                progress((i + 1) / s.n_layers)
        normed = self._norm("final_norm", self._decoder.final_norm, x, "hidden")
        w.output("hidden", "float32", ["n", s.hidden_size])
        head = self._decoder.embedding if self._decoder.head is None else self._decoder.head
        self._linear("head", w.node("Gather", [normed, rows], axis=0), Linear(head), "logits")
        w.output("logits", "float32", ["m", s.vocab_size])

    def _embed(self, ids: str) -> str:
        """Rows of the embedding, (n, hidden_size); codes are bytes, as few devices gather anything smaller."""
        w, table = self._w, self._decoder.embedding
        if not isinstance(table, Blocks):
            return w.node("Gather", [w.weight("embedding", table), ids], axis=0)

        def gathered(name: str, values: npt.NDArray[np.generic]) -> str:
            found = w.node("Gather", [w.weight(f"embedding.{name}", values), ids], axis=0)
            return found if values.ndim == 3 else w.node("Unsqueeze", [found, self._ints("axis2", 2)])

        x = w.node("Cast", [gathered("codes", table.codes)], to=1)
        zero = table.zero_point
        if isinstance(zero, int):
            x = w.node("Sub", [x, w.weight("embedding.zero", np.array([zero], dtype=np.float32))])
        else:
            x = w.node("Sub", [x, gathered("zero", zero.astype(np.float32))])
        x = w.node("Mul", [x, gathered("scale", table.scale)])
        if table.residual is not None:
            x = w.node("Add", [x, gathered("residual", table.residual)])
        return w.node("Reshape", [x, self._ints("embedding.shape", -1, table.shape[1])])

    def _norm(self, name: str, gain: Floats | None, x: str, output: str = "") -> str:
        """RMS norm, in the operators that every engine knows to fuse."""
        assert gain is not None, "llama has every norm"
        w = self._w
        if self._norm_kind == "lp":
            width = np.float32(len(gain) ** 0.5)
            return w.node("Mul", [w.node("LpNormalization", [x], axis=-1, p=2), w.weight(name, gain * width)], output)
        epsilon = w.weight("epsilon", np.array([self._decoder.shape.norm_epsilon], dtype=np.float32))
        square = w.node("Pow", [x, w.weight("two", np.array([2.0], dtype=np.float32))])
        mean = w.node("ReduceMean", [square, self._ints("axis_last", -1)], keepdims=1)
        root = w.node("Sqrt", [w.node("Add", [mean, epsilon])])
        return w.node("Mul", [w.node("Div", [x, root]), w.weight(name, gain)], output)

    def _attention(self, i: int, layer: Layer, x: str) -> str:
        w, s = self._w, self._decoder.shape
        assert layer.key is not None and layer.value is not None  # as in all decoders that are built as llama is
        heads, kv = s.n_heads, s.kv_heads
        # Values apart: they are small, and a device that quantizes activations would give them the keys' coarse steps.
        turned = self._by_head(self._fused(f"l{i}.qk", x, [layer.query, layer.key]), heads + kv)
        self._by_head(self._linear(f"l{i}.value", x, layer.value), kv, f"new_value_{i}")
        query, _ = w.nodes(
            "Split",
            [self._rotate(turned), self._ints("query.sizes", heads, kv)],
            [f"l{i}.query", f"new_key_{i}"],
            axis=1,
        )
        keys, values = (self._entries(kind, i) for kind in ("key", "value"))
        scale = w.weight("scale", np.array([s.head_dim**-0.5], dtype=np.float32))
        query = w.node(
            "Mul", [w.node("Reshape", [query, self._ints("groups", kv, heads // kv, -1, s.head_dim)]), scale]
        )
        scores = w.node("MatMul", [query, w.node("Transpose", [keys], perm=[0, 1, 3, 2])])
        shares = w.node("Softmax", [w.node("Add", [scores, "mask"])], axis=-1)
        attended = w.node("Transpose", [w.node("MatMul", [shares, values])], perm=[2, 0, 1, 3])
        flat = w.node("Reshape", [attended, self._ints("attended", -1, heads * s.head_dim)])
        return self._linear(f"l{i}.output", flat, layer.output)

    def _by_head(self, x: str, heads: int, output: str = "") -> str:
        """(n, heads * head_dim) as (1, heads, n, head_dim)."""
        w, head_dim = self._w, self._decoder.shape.head_dim
        split = w.node("Reshape", [x, self._ints(f"heads.{heads}", 1, -1, heads, head_dim)])
        return w.node("Transpose", [split], output, perm=[0, 2, 1, 3])

    def _entries(self, kind: str, i: int) -> str:
        """The window with the new rows at their columns, (kv_heads, 1, W, head_dim)."""
        w, s = self._w, self._decoder.shape
        past = w.input(f"past_{kind}_{i}", "float32", [1, s.kv_heads, "W", s.head_dim])
        w.output(f"new_{kind}_{i}", "float32", [1, s.kv_heads, "n", s.head_dim])
        whole = w.node("Add", [past, w.node("MatMul", ["place", f"new_{kind}_{i}"])])
        return w.node("Reshape", [whole, self._ints("entries", s.kv_heads, 1, -1, s.head_dim)])

    def _rotate(self, x: str) -> str:
        w, half = self._w, self._decoder.shape.head_dim // 2
        name = w.fresh("halves")
        low, high = w.nodes(
            "Split", [x, self._ints("halves.sizes", half, half)], [f"{name}.low", f"{name}.high"], axis=3
        )
        crossed = w.node("Concat", [w.node("Neg", [high]), low], axis=3)
        return w.node("Add", [w.node("Mul", [x, "cos"]), w.node("Mul", [crossed, "sin"])])

    def _mlp(self, i: int, layer: Layer, x: str) -> str:
        w, size, mlp = self._w, self._decoder.shape.ffn_size, layer.mlp
        assert mlp is not None  # mixtures are refused
        both = self._fused(f"l{i}.gate_up", x, [mlp.gate, mlp.up])
        gate, up = w.nodes("Split", [both, self._ints("ffn", size, size)], [f"l{i}.gate", f"l{i}.up"], axis=1)
        active = w.node("Mul", [w.node("Mul", [gate, w.node("Sigmoid", [gate])]), up])
        return self._linear(f"l{i}.down", active, mlp.down)

    def _fused(self, name: str, x: str, parts: list[Linear]) -> str:
        """Several projections of one input, in one multiplication where their forms allow it."""
        blocks = [p.weight for p in parts if isinstance(p.weight, Blocks)]
        fused = stack(blocks) if len(blocks) == len(parts) else None
        if fused is None:
            outs = [self._linear(f"{name}.{i}", x, part) for i, part in enumerate(parts)]
            return self._w.node("Concat", outs, axis=1)
        bias = None
        if any(p.bias is not None for p in parts):
            zeros = [np.zeros(p.weight.shape[0], dtype=np.float32) for p in parts]
            bias = np.concatenate([z if p.bias is None else p.bias for p, z in zip(parts, zeros, strict=True)])
        return self._linear(name, x, Linear(fused, bias))

    def _linear(self, name: str, x: str, linear: Linear, output: str = "") -> str:
        w, weight = self._w, linear.weight
        terms = [w.node("MatMul", [x, self._dequantized(name, weight)])]
        if isinstance(weight, Blocks) and weight.residual is not None:
            residual = w.weight(f"{name}.residual", weight.residual.T)
            terms.append(w.node("MatMul", [self._block_sums(x, weight), residual]))
        if linear.bias is not None:
            terms.append(w.weight(f"{name}.bias", linear.bias))
        total = terms[0]
        for i, term in enumerate(terms[1:], start=2):
            total = w.node("Add", [total, term], output if i == len(terms) else "")
        return total if len(terms) > 1 or not output else w.node("Identity", [total], output)

    def _dequantized(self, name: str, weight: Blocks | Floats) -> str:
        """A weight in f32 as (columns, rows). Symmetric codes become signed ones, which need no zero point."""
        w = self._w
        if not isinstance(weight, Blocks):
            return w.weight(f"{name}.weight", weight.T)
        rows, columns = weight.shape
        middle = 1 << (weight.bits - 1)
        symmetric = isinstance(weight.zero_point, int) and weight.zero_point == middle
        kind = f"int{weight.bits}" if symmetric else f"uint{weight.bits}"
        codes = weight.codes.reshape(rows, columns).T ^ np.uint8(middle if symmetric else 0)
        inputs = [w.codes(f"{name}.codes", codes, kind), w.weight(f"{name}.scale", weight.scale.T)]
        if not symmetric:
            zero = np.broadcast_to(np.asarray(weight.zero_point, dtype=np.uint8), weight.scale.shape).T
            inputs.append(w.codes(f"{name}.zero", zero, kind))
        return w.node("DequantizeLinear", inputs, axis=0, block_size=weight.block)

    def _block_sums(self, x: str, weight: Blocks) -> str:
        """Sums of x over each block of columns: what the residual of a minimum is multiplied with."""
        key = (x, weight.block)
        if key not in self._sums:
            blocks = self._ints(f"blocks.{weight.shape[1]}.{weight.block}", -1, weight.scale.shape[1], weight.block)
            split = self._w.node("Reshape", [x, blocks])
            self._sums[key] = self._w.node("ReduceSum", [split, self._ints("axis2", 2)], keepdims=0)
        return self._sums[key]

    def _ints(self, name: str, *values: int) -> str:
        return self._w.weight(name, np.array(values, dtype=np.int64))
