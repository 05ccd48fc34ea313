"""The decoder graph: one contract for every exporter, every cache policy and every drafter. See docs/onnx-graph.md.

Inputs, batch 1, n new tokens, T cached and new entries, MAX entries of room:
  input_ids [1, n] int64, position_ids [1, n] int64, logit_rows [m] int64 (rows whose logits are wanted),
  bias [1, 1, n, T] f32 (added to attention scores; T is read off it), sliding_bias (the same, of layers with a
  window), past_key_<l>, past_value_<l> [1, kv_heads, MAX, head_dim] f32, of layers that keep keys and values.
Outputs: logits [m, vocab_size], hidden [n, hidden_size] (after the final norm), present_key_<l>, present_value_<l>
  (bound to the same memory as the past), present_key_<l>_<m>, present_value_<l>_<m> of a layer m that attends to what
  layer l keeps (bound to that memory, too), and in the observing form, of decoders whose layers are alike,
  query_<l> [1, n_heads, n, head_dim] after rotation.

Causality is the attention operator's own; the bias only takes away more. Rewinding is a smaller T.
"""

from __future__ import annotations

import numpy as np

from ...runtime.files.rotation import Rotation
from ...runtime.progress import Share
from ..quantize.blocks import Blocks, Floats
from .decoder import Decoder, Layer, Linear
from .experts_graph import ExpertsGraph
from .products import Products, looked_up
from .writer import OnnxWriter


class DecoderGraph:
    """Builds the graph of a decoder.

    accuracy_level: of MatMulNBits: 4 quantizes activations to int8 per row and block, 0 keeps them in f32.
    """

    def __init__(self, writer: OnnxWriter, decoder: Decoder, accuracy_level: int) -> None:
        self._w, self._decoder = writer, decoder
        self._products = Products(writer, accuracy_level)
        self._experts = ExpertsGraph(writer, self._products, decoder.shape)
        self._tables: dict[int, list[str]] = {}  # cos and sin of a rotation, by its id
        self._kept: dict[int, list[str]] = {}  # the new keys and values of a layer
        self._shared = {x.cache_of for x in decoder.shape.layers}  # layers that others attend to

    def build(self, progress: Share | None = None) -> None:
        """Add every node, input and output."""
        w, s = self._w, self._decoder.shape
        ids = w.input("input_ids", "int64", [1, "n"])
        w.input("position_ids", "int64", [1, "n"])
        rows = w.input("logit_rows", "int64", ["m"])
        self._lengths(w.input("bias", "float32", [1, 1, "n", "T"]))
        if s.window is not None:
            w.input("sliding_bias", "float32", [1, 1, "n", "T"])
        self._positions()
        embedded = w.node("Squeeze", [looked_up(w, ids, "embedding", self._decoder.embedding), self._int("axis0", 0)])
        residual, delta = self._scaled(embedded, "embedding_scale", s.embedding_scale), ""
        inputs = self._inputs(ids, residual)
        for i in range(s.n_layers):
            layer = self._decoder.layer(i)
            normed, residual = self._norm(f"l{i}.attention_norm", layer.attention_norm, residual, delta)
            delta = self._attention(i, layer, normed)
            delta = self._normed(f"l{i}.attention_post_norm", layer.attention_post_norm, delta)
            delta = self._scaled(delta, "residual_scale", s.residual_scale)
            normed, residual = self._norm(f"l{i}.mlp_norm", layer.mlp_norm, residual, delta)
            delta = self._normed(f"l{i}.mlp_post_norm", layer.mlp_post_norm, self._mlp(i, layer, normed))
            delta = self._scaled(delta, "residual_scale", s.residual_scale)
            if inputs:
                residual = w.node("Add", [residual, delta])
                delta = self._input(i, layer, residual, inputs[i])
            if layer.scale != 1.0:
                total = w.node("Add", [residual, delta])
                residual, delta = self._scaled(total, f"l{i}.scale", layer.scale), ""
            if progress:
                progress((i + 1) / s.n_layers)
        normed, _ = self._norm("final_norm", self._decoder.final_norm, residual, delta, "hidden")
        w.output("hidden", "float32", ["n", s.hidden_size])
        self._head(w.node("Gather", [normed, rows], axis=0))

    def _positions(self) -> None:
        """Tables that are looked up by position."""
        w, s = self._w, self._decoder.shape
        for i, rotation in enumerate(s.rotations):
            names = [name if i == 0 else f"{name}{i}" for name in ("cos", "sin")]
            self._tables[id(rotation)] = [
                w.weight(name, table) for name, table in zip(names, rotation.tables(s.context_length), strict=True)
            ]
        if s.temperature is not None:
            table = w.weight("temperature.table", s.temperature.at(np.arange(s.context_length)))
            found = w.node("Gather", [table, "position_ids"], axis=0)
            w.node("Unsqueeze", [found, self._int("axis2", 2)], "temperature")

    def _lengths(self, bias: str) -> None:
        """T - 1 and T, as the attention operator wants them, from the bias's own shape."""
        w = self._w
        shape = w.node("Shape", [bias], start=3, end=4)
        total = w.node("Cast", [shape], to=6)
        w.node("Squeeze", [total], "total_length")
        w.node("Sub", [total, w.weight("one", np.array([1], dtype=np.int32))], "last_entry")

    def _inputs(self, ids: str, embedded: str) -> list[str]:
        """What each layer is given beside what the last one gave, (n, size) each; nothing where there is none."""
        w, inputs, s = self._w, self._decoder.inputs, self._decoder.shape
        size = s.layer_input_size
        if inputs is None or size is None:
            return []
        projected = self._products.linear("inputs.projection", embedded, inputs.projection)
        projected = self._scaled(projected, "inputs.projection_scale", s.hidden_size**-0.5)
        normed = self._norm_of_parts(
            "inputs.norm", inputs.norm, w.node("Unsqueeze", [projected, self._int("axis0", 0)])
        )
        found = self._scaled(looked_up(w, ids, "inputs.table", inputs.table), "inputs.table_scale", size**0.5)
        both = self._scaled(w.node("Add", [normed, found]), "inputs.scale", 2**-0.5)
        sizes = w.weight("inputs.sizes", np.full(s.n_layers, size, dtype=np.int64))
        flat = w.node("Squeeze", [both, self._int("axis0", 0)])
        return w.nodes("Split", [flat, sizes], [f"l{i}.input" for i in range(s.n_layers)], axis=-1)

    def _input(self, i: int, layer: Layer, x: str, given: str) -> str:
        """What a layer makes of what it is given beside x."""
        assert layer.input_gate is not None and layer.input_projection is not None
        gate = self._products.linear(f"l{i}.input_gate", x, layer.input_gate)
        gate = self._products.active(gate, self._decoder.shape.family.activation)
        made = self._products.linear(
            f"l{i}.input_projection", self._w.node("Mul", [gate, given]), layer.input_projection
        )
        return self._normed(f"l{i}.input_post_norm", layer.input_post_norm, made)

    def _norm(self, name: str, gain: Floats | None, residual: str, delta: str, output: str = "") -> tuple[str, str]:
        """(normed, residual + delta); without a gain the sum is what is normed."""
        w, epsilon = self._w, self._decoder.shape.norm_epsilon
        if gain is None:
            total = w.node("Add", [residual, delta]) if delta else residual
            return total, total
        output = output or f"{name}.out"
        if not delta:
            return self._normed(name, gain, residual, output), residual
        inputs, outputs = [residual, delta, w.weight(name, gain)], [output, "", "", f"{name}.residual"]
        w.nodes("SkipSimplifiedLayerNormalization", inputs, outputs, contrib=True, epsilon=epsilon)
        return output, outputs[3]

    def _normed(self, name: str, gain: Floats | None, x: str, output: str = "") -> str:
        """x normed; x itself without a gain."""
        if gain is None:
            return x
        w, output = self._w, output or f"{name}.out"
        epsilon = self._decoder.shape.norm_epsilon
        w.nodes("SimplifiedLayerNormalization", [x, w.weight(name, gain)], [output], axis=-1, epsilon=epsilon)
        return output

    def _scaled(self, x: str, name: str, factor: float) -> str:
        return x if factor == 1.0 else self._w.node("Mul", [x, self._float(name, factor)])

    def _attention(self, i: int, layer: Layer, x: str) -> str:
        w, s, kind = self._w, self._decoder.shape, self._decoder.shape.layers[i]
        sizes = s.sizes(i)
        parts = [part for part in (layer.query, layer.key, layer.value) if part is not None]
        fused = self._products.fused(f"l{i}.qkv", x, parts)
        packed = w.node("Unsqueeze", [fused, self._int("axis0", 0)])
        turned: list[str] = [] if kind.rotation is None else self._tables[id(kind.rotation)]
        # What others attend to is turned apart: it is theirs, too.
        apart = kind.rotation is not None and (kind.rotation.rotated != sizes.head_dim or i in self._shared)
        apart = apart or kind.cache_of is not None
        whole = layer.query_norm is None and s.temperature is None and not apart and layer.value is not None
        query, key, value = [packed, "", ""] if whole else self._apart(i, layer, packed)
        if apart and kind.rotation is not None:
            query = self._rotated(query, s.n_heads, kind.rotation)
            key = key and self._rotated(key, sizes.kv_heads, kind.rotation)
        rotates = bool(turned) and not apart
        past: list[int | str] = [1, sizes.kv_heads, "MAX", sizes.head_dim]
        if kind.cache_of is None:
            cache = [w.input(f"past_{x}_{i}", "float32", past) for x in ("key", "value")]
            present = [f"present_{x}_{i}" for x in ("key", "value")]
            self._kept[i] = [key, value]
        else:
            key, value = self._kept[kind.cache_of]
            cache = [f"past_{x}_{kind.cache_of}" for x in ("key", "value")]
            present = [f"present_{x}_{kind.cache_of}_{i}" for x in ("key", "value")]
        where = [*turned, "position_ids"] if rotates else ["", "", ""]
        bias = "bias" if kind.window is None else "sliding_bias"
        inputs = [query, key, value, *cache, "last_entry", "total_length", *where, bias]
        inputs += [] if layer.sinks is None else [w.weight(f"l{i}.sinks", layer.sinks)]
        more: dict[str, float] = {} if s.attention_scale is None else {"scale": s.attention_scale}
        more |= {} if s.attention_softcap is None else {"softcap": s.attention_softcap}
        out = w.nodes(
            "GroupQueryAttention",
            inputs,
            [f"l{i}.attended", *present],
            contrib=True,
            num_heads=s.n_heads,
            kv_num_heads=sizes.kv_heads,
            do_rotary=int(rotates),
            rotary_interleaved=0,
            **more,
        )[0]
        for name in present:
            w.output(name, "float32", past)
        if s.even:
            with w.extra():
                self._queries(i, query, turned if rotates else [])
        flat = w.node("Squeeze", [out, self._int("axis0", 0)])
        return self._products.linear(f"l{i}.output", flat, layer.output)

    def _apart(self, i: int, layer: Layer, packed: str) -> list[str]:
        """Query, key and value out of one product, normed and tempered; each (1, n, heads * head_dim), the latter two
        "" where the layer has none."""
        w, s = self._w, self._decoder.shape
        sizes = s.sizes(i)
        heads = [s.n_heads, *(sizes.kv_heads for x in (layer.key, layer.value) if x is not None)]
        query, key, value = packed, "", ""
        if layer.key is not None:
            widths = w.weight(
                "_".join(map(str, ("qkv.sizes", *heads, sizes.head_dim))),
                np.array(heads, dtype=np.int64) * sizes.head_dim,
            )
            names = [f"l{i}.{x}" for x in ("q", "k", "v")][: len(heads)]
            query, key, *rest = w.nodes("Split", [packed, widths], names, axis=-1)
            value = rest[0] if rest else key
            if s.family.value_norm:
                ones = np.ones(sizes.head_dim, dtype=np.float32)
                value = self._norm_of_parts(f"l{i}.value_norm", ones, value)
            key = self._norm_of_parts(f"l{i}.key_norm", layer.key_norm, key)
        query = self._norm_of_parts(f"l{i}.query_norm", layer.query_norm, query)
        return [query if s.temperature is None else w.node("Mul", [query, "temperature"]), key, value]

    def _norm_of_parts(self, name: str, gain: Floats | None, x: str) -> str:
        """Parts of each row, as wide as the gain, normed each for itself."""
        if gain is None:
            return x
        w = self._w
        parts = w.weight(f"parts.{len(gain)}", np.array([1, 0, -1, len(gain)], dtype=np.int64))
        rows = w.weight("rows", np.array([1, 0, -1], dtype=np.int64))
        normed = self._normed(name, gain, w.node("Reshape", [x, parts]))
        return w.node("Reshape", [normed, rows])

    def _rotated(self, x: str, heads: int, rotation: Rotation) -> str:
        """(1, n, heads * head_dim) with each head, or the first part of it, turned."""
        return self._w.node(
            "RotaryEmbedding",
            [x, "position_ids", *self._tables[id(rotation)]],
            contrib=True,
            interleaved=0,
            num_heads=heads,
            rotary_embedding_dim=rotation.rotated,
        )

    def _int(self, name: str, value: int) -> str:
        return self._w.weight(name, np.array([value], dtype=np.int64))

    def _float(self, name: str, value: float) -> str:
        return self._w.weight(name, np.array(value, dtype=np.float32))

    def _queries(self, i: int, query: str, tables: list[str]) -> None:
        """Queries after rotation, with what scores are scaled by other than 1 / sqrt(head_dim): for observers."""
        w, s = self._w, self._decoder.shape
        ends = (("slice.start", 0), ("slice.end", s.n_heads * s.head_dim), ("axis2", 2))
        query = w.node("Slice", [query, *(self._int(name, at) for name, at in ends)])
        split = w.weight("heads", np.array([0, 0, s.n_heads, s.head_dim], dtype=np.int64))
        heads, scale = (
            w.node("Reshape", [query, split]),
            1.0 if s.attention_scale is None else s.score_scale * s.head_dim**0.5,
        )
        last = "" if tables or scale != 1.0 else f"query_{i}"
        heads = w.node("Transpose", [heads], last, perm=[0, 2, 1, 3])
        if tables:
            last = "" if scale != 1.0 else f"query_{i}"
            heads = w.node("RotaryEmbedding", [heads, "position_ids", *tables], last, contrib=True, interleaved=0)
        if scale != 1.0:
            w.node("Mul", [heads, self._float("query_scale", scale)], f"query_{i}")
        w.output(f"query_{i}", "float32", [1, s.n_heads, "n", s.head_dim])

    def _mlp(self, i: int, layer: Layer, x: str) -> str:
        w, s = self._w, self._decoder.shape
        every = "" if layer.mlp is None else self._products.mlp(f"l{i}.", x, layer.mlp, s.family.activation)
        if layer.experts is None:
            return every
        picked = self._experts.layer(f"l{i}.", x, layer.experts)
        if layer.experts.shared_gate is not None:
            weighed = w.node("Sigmoid", [self._products.linear(f"l{i}.shared_gate", x, layer.experts.shared_gate)])
            every = w.node("Mul", [every, weighed])
        return w.node("Add", [picked, every]) if every else picked

    def _head(self, x: str) -> None:
        decoder, w = self._decoder, self._w
        tied = decoder.head is None
        weight = decoder.embedding if decoder.head is None else decoder.head
        like = "embedding.codes" if tied and isinstance(weight, Blocks) else None
        cap, scaled = decoder.shape.logit_softcap, decoder.shape.logit_scale != 1.0
        found = self._products.linear("head", x, Linear(weight), "" if scaled or cap else "logits", like)
        if scaled:
            found = w.node(
                "Mul", [found, self._float("logit_scale", decoder.shape.logit_scale)], "" if cap else "logits"
            )
        if cap is not None:
            by = self._float("logit_softcap", cap)
            w.node("Mul", [w.node("Tanh", [w.node("Div", [found, by])]), by], "logits")
        w.output("logits", "float32", ["m", decoder.shape.vocab_size])
