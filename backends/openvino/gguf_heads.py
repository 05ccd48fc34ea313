"""Queries, keys and values for attention, made anew from the projections in OpenVINO's graph of a GGUF file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_description import DecoderShape
from ...runtime.files.gguf_file import GgufFile
from ...runtime.files.rotation import Rotation
from .graph import Node, Output, expect, source

# What may lie between a projection and attention: norms of heads, rotation, a scale. All of it is replaced.
_AFTER_A_PROJECTION = {"Add", "Multiply", "Concat", "VariadicSplit", "Transpose", "Reshape", "Slice", "Split"}


class Heads:
    """Norms, rotations and scales of a decoder; positions are the graph's input of them, (n,).

    Rotation is in halves, which OpenVINO recognises and runs as one kernel; in pairs, as rows of some families lie in
    GGUF files, it costs a sixth of a step more.
    """

    def __init__(self, file: GgufFile, shape: DecoderShape, positions: Node) -> None:
        from openvino import opset13 as op

        self._file, self._shape = file, shape
        at = op.reshape(op.convert(positions, "f32"), np.array([-1, 1, 1, 1]), False)
        self._waves = {id(rotation): _waves(at, rotation) for rotation in shape.rotations}
        self._temperature: Node | None = None
        if shape.temperature is not None:
            table = op.constant(shape.temperature.at(np.arange(shape.context_length)))
            found = op.gather(table, positions, op.constant(np.int32(0)))
            self._temperature = op.reshape(found, np.array([-1, 1, 1, 1]), False)

    def query(self, value: Output, layer: int) -> Node:
        """(n, n_heads * head_dim)"""
        from openvino import opset13 as op

        s = self._shape
        made = self._turned(value, s.n_heads, layer, "query_norm")
        made = made if self._temperature is None else op.multiply(made, self._temperature)
        if s.attention_scale is not None:  # in the queries, as they are observed; attention adds 1 / sqrt(head_dim)
            made = op.multiply(made, op.constant(np.float32(s.attention_scale * s.head_dim**0.5)))
        return self._flat(made, s.n_heads)

    def key(self, value: Output, layer: int) -> Node:
        """(n, kv_heads * head_dim)"""
        return self._flat(self._turned(value, self._shape.kv_heads, layer, "key_norm"), self._shape.kv_heads)

    def value(self, value: Output) -> Node:
        """(n, kv_heads * head_dim)"""
        return self._flat(projected(value, self._shape.kv_heads, self._shape), self._shape.kv_heads)

    def sinks(self, layer: int) -> Node | None:
        """(1, n_heads, 1, 1); None where there are none."""
        from openvino import opset13 as op

        tensor = self._shape.sinks(layer)
        return None if tensor is None else op.constant(self._file.tensors[tensor].values().reshape(1, -1, 1, 1))

    def _flat(self, x: Node | Output, heads: int) -> Node:
        from openvino import opset13 as op

        return op.reshape(x, np.array([-1, heads * self._shape.head_dim]), False)

    def _turned(self, value: Output, heads: int, layer: int, norm: str) -> Node:
        """Queries or keys as attention takes them, (n, heads, 1, head_dim)."""
        from openvino import Type
        from openvino import opset13 as op

        s, kind = self._shape, self._shape.layers[layer]
        flat = projected(value, heads, s)
        if s.family.pairs:
            _permute_rows(flat.get_node(), s.half_order(heads))
        tensor, by_row = s.norms(layer).get(norm), s.family.query_key_norm == "row"
        if tensor is not None and by_row:
            flat = _normed(flat, self._file.tensors[tensor].values(), s.norm_epsilon)
        x = op.reshape(flat, np.array([-1, heads, 1, s.head_dim]), False)
        if tensor is not None and not by_row:
            x = _normed(x, self._file.tensors[tensor].values(), s.norm_epsilon)
        if kind.rotation is None:
            return x
        half = kind.rotation.rotated // 2

        def part(start: int, end: int) -> Node:
            return op.slice(x, *(op.constant([i], Type.i64) for i in (start, end, 1, 3)))

        whole = kind.rotation.rotated == s.head_dim
        both = x if whole else part(0, 2 * half)
        crossed = op.concat([op.multiply(part(half, 2 * half), op.constant(-1.0, Type.f32)), part(0, half)], -1)
        cos, sin = self._waves[id(kind.rotation)]
        made = op.add(op.multiply(both, cos), op.multiply(crossed, sin))
        return made if whole else op.concat([made, part(2 * half, s.head_dim)], -1)


def _normed(x: Node | Output, gain: npt.NDArray[np.float32], epsilon: float) -> Node:
    """RMS norm along the last axis."""
    from openvino import opset13 as op

    last, two = op.constant(np.array([-1])), op.constant(np.float32(2))
    mean = op.add(op.reduce_mean(op.power(x, two), last, True), op.constant(np.float32(epsilon)))
    return op.multiply(op.multiply(x, op.power(mean, op.constant(np.float32(-0.5)))), op.constant(gain))


def _waves(at: Node, rotation: Rotation) -> tuple[Node, Node]:
    """Cosine and sine (n, 1, 1, rotated), from our own frequencies: OpenVINO's graph leaves their factors out."""
    from openvino import Type
    from openvino import opset13 as op

    turns = np.tile(rotation.inverse_frequencies, 2).reshape(1, 1, 1, -1)
    angles = op.multiply(at, op.constant(turns, Type.f32))
    if rotation.amplitude == 1.0:
        return op.cos(angles), op.sin(angles)
    by = op.constant(rotation.amplitude, Type.f32)
    return op.multiply(op.cos(angles), by), op.multiply(op.sin(angles), by)


def projected(value: Output, heads: int, shape: DecoderShape) -> Output:
    """What was made of the hidden states, (1, 1, n, heads * head_dim), upwards from what attention was given."""
    flat = f"[1,1,?,{heads * shape.head_dim}]"
    below = value
    while value.get_node().get_type_name() != "MatMul":
        kind = value.get_node().get_type_name()
        expect(kind in _AFTER_A_PROJECTION, f"{kind} between a projection and attention")
        below, value = value, value.get_node().input_value(0)
    if below.get_node().get_type_name() == "Add":  # its bias
        value = below
    expect(str(value.get_partial_shape()) == flat, f"{value.get_partial_shape()} where {flat} was expected")
    return value


def _permute_rows(node: Node, order: npt.NDArray[np.int64]) -> None:
    """Put the outputs of a projection, a product and perhaps a bias, in another order."""
    if node.get_type_name() == "Add":
        expect(_permuted(node, 1, order) == 1, "a bias of another shape")
        node = source(node, 0)
    expect(node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"], "no projection before rotation")
    expect(_permuted(node, 1, order) > 0, "weights of another shape")


def _permuted(node: Node, i: int, order: npt.NDArray[np.int64]) -> int:
    """How many constants with a row for each of `order`, above an input, were put in that order."""
    from openvino import Tensor
    from openvino.op import Constant

    above = source(node, i)
    if above.get_type_name() != "Constant":
        return sum(_permuted(above, j, order) for j in range(above.get_input_size()))
    dims = list(above.get_output_shape(0))
    if not dims or dims[0] != len(order):
        return 0
    rows = above.data.view(np.uint8).reshape(len(order), -1)[order]  # as stored, two elements of four bits in a byte
    made = Constant(Tensor(rows.reshape(-1), above.get_output_shape(0), above.get_element_type()), shared_memory=False)
    node.input(i).replace_source_output(made.output(0))
    return 1
