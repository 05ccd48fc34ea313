"""The weight matrices of a decoder IR as optimum-intel writes it: where they are, and what they are stored as."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError

Node: TypeAlias = Any  # openvino.Node: the package has no types for what its graphs are made of
Model: TypeAlias = Any  # openvino.Model

_STORED = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}
_BETWEEN = {"Convert", "Multiply", "Subtract", "Reshape"}  # a stored matrix and the product it is for
_AFTER_THE_HEAD = {"Convert", "Multiply", "Divide", "Tanh", "Reshape", "Add"}
_ROWS = 4096  # quantized at once: 25 MB of a matrix of 1536 columns
_SMALLEST = 6e-8  # an f16
_BLOCKS = 1 << 16
_LEVELS = range(15, 6, -1)  # a file's blocks may leave out the ends of their grid
_OFF_GRID = 0.02  # of a step: what f16 scales in the file leave
_MOST_ZERO = 1024  # of a zero point: up to here f16 has it to half a step


@dataclass(frozen=True, slots=True)
class Matrix:
    """A node that reads a weight matrix through one of its inputs."""

    node: Node
    port: int

    @property
    def name(self) -> str:
        """The node's own name, which NNCF knows it by."""
        return str(self.node.get_friendly_name())

    @property
    def constant(self) -> Node:
        """The matrix as stored."""
        return _stored_at(self.node, self.port)

    @property
    def stored(self) -> str:
        """ "fp32", "fp16", "int8" or "int4"; another type under its own name."""
        kind = str(self.constant.get_element_type().get_type_name())
        return _STORED.get(kind, kind)


@dataclass(frozen=True, slots=True)
class Matrices:
    """Where the weights of a decoder are, or of an encoder, which has no output. tied: embedding and output are one
    matrix."""

    layers: tuple[Matrix, ...]
    embedding: Matrix | None
    output: Matrix | None

    @property
    def tied(self) -> bool:
        table, output = self.embedding, self.output
        if table is None or output is None:
            return False
        return bool(table.constant.get_friendly_name() == output.constant.get_friendly_name())

    @property
    def parts(self) -> dict[str, list[Matrix]]:
        """What is stored apart, under the names that WeightForm uses; a tied matrix is the output."""
        embedding, output = ([] if matrix is None else [matrix] for matrix in (self.embedding, self.output))
        ends = {"output": [*embedding, *output]} if self.tied else {"embedding": embedding, "output": output}
        return {**{part: found for part, found in ends.items() if found}, "layers": list(self.layers)}


def matrices(model: Model) -> Matrices:
    """The weight matrices of a decoder. Raises UnsupportedModelError for a graph of another kind."""
    products, tables = _products(model), _tables(model)
    output = [m for m in products if m.name == _head(model)]
    if len(tables) != 1 or len(output) != 1:
        raise UnsupportedModelError(
            f"the graph has {len(tables)} token tables and {len(output)} last projections instead of one each: it is "
            "not the decoder that optimum-intel 2.1 writes. Install that release, or export to another format."
        )
    return Matrices(tuple(m for m in products if m.name != output[0].name), tables[0], output[0])


def encoder_decoder_matrices(model: Model) -> Matrices:
    """The weight matrices of one half of an encoder-decoder; tables of positions and of distances are none."""
    products, ids = _products(model), {"input_ids", "source_ids"}
    tables = [table for table in _tables(model) if _index_of(table.node) in ids]
    head = _head(model) if any("logits" in port.names for port in model.outputs) else None
    output = next((m for m in products if m.name == head), None)
    layers = tuple(m for m in products if m.name != head)
    return Matrices(layers, tables[0] if tables else None, output)


def _products(model: Model) -> list[Matrix]:
    return [Matrix(n, 1) for n in model.get_ordered_ops() if n.get_type_name() == "MatMul" and _is_matrix(n, 1)]


def _tables(model: Model) -> list[Matrix]:
    return [Matrix(n, 0) for n in model.get_ordered_ops() if n.get_type_name() == "Gather" and _is_matrix(n, 0)]


def _head(model: Model) -> str:
    """The name of the last projection."""
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() in _AFTER_THE_HEAD:
        head = head.input_value(0).get_node()
    return str(head.get_friendly_name())


def _index_of(gather: Node) -> str | None:
    """The name of the input that a table is looked up by, if it is one as it came."""
    found = gather.input_value(1)
    while found.get_node().get_type_name() in ("Convert", "Reshape"):
        found = found.get_node().input_value(0)
    return str(found.any_name) if found.get_node().get_type_name() == "Parameter" else None


def separate(found: Matrices) -> None:
    """Give a tied token table a copy of its own, so that it can be stored in another form than the output."""
    from openvino import opset13 as op

    assert found.embedding is not None
    copy = op.constant(found.embedding.constant.data)
    found.embedding.node.input(0).replace_source_output(copy.output(0))


def store_as_half(parts: list[Matrix]) -> None:
    """Store f32 matrices as f16, each once."""
    from openvino import Model as OvModel
    from openvino import opset13 as op
    from openvino._offline_transformations import compress_model_transformation

    for sharing in _by_constant(parts):
        # Only this transformation writes the mark that lets the plug-in keep f16 weights; it takes a whole model.
        read = op.relu(sharing[0].constant)
        compress_model_transformation(OvModel([op.result(read)], [], "one matrix"))
        for part in sharing:
            part.node.input(part.port).replace_source_output(read.input_value(0))


def store_as_bytes(parts: list[Matrix], block: int, symmetric: bool) -> None:
    """Store f32 matrices as int8 with a scale per block of columns, each once.

    NNCF has one scale for a whole row, which on SmolLM2 is three times further from the source. The nodes are those
    that NNCF writes for int4, so that the plug-in knows them.
    """
    from openvino import Type
    from openvino import opset13 as op

    for sharing in _by_constant(parts):
        matrix = sharing[0].constant.data
        values, scales, zeros = quantize_rows(matrix, block, symmetric)
        wide = op.convert(op.constant(values), Type.f16)
        if not symmetric:
            wide = op.subtract(wide, op.convert(op.constant(zeros), Type.f16))
        whole = op.reshape(op.multiply(wide, op.constant(scales)), np.array(matrix.shape), False)
        read = op.convert(whole, Type.f32)
        for part in sharing:
            part.node.input(part.port).replace_source_output(read.output(0))


def quantize_rows(
    matrix: npt.NDArray[np.float32], block: int, symmetric: bool
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """A matrix (n, m) as 8-bit values (n, m / block, block), scales and zero points (n, m / block, 1).

    An entry is (value - zero) * scale, with values in int8 and no zero points where symmetric.
    """
    n, m = matrix.shape
    values = np.empty((n, m // block, block), dtype=np.int8 if symmetric else np.uint8)
    scales = np.empty((n, m // block, 1), dtype=np.float16)
    zeros = np.zeros((n, m // block, 1), dtype=np.uint8)
    for at in range(0, n, _ROWS):
        x = matrix[at : at + _ROWS].reshape(-1, m // block, block)
        low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
        step = np.maximum(-low, high) / 127 if symmetric else (np.maximum(high, 0) - np.minimum(low, 0)) / 255
        step = np.maximum(step, _SMALLEST).astype(np.float16)
        scales[at : at + _ROWS] = step
        q = x / step.astype(np.float32)
        if symmetric:
            values[at : at + _ROWS] = np.clip(np.rint(q), -127, 127)
            continue
        zero = np.clip(np.rint(-np.minimum(low, 0) / step.astype(np.float32)), 0, 255)
        zeros[at : at + _ROWS] = zero
        values[at : at + _ROWS] = np.clip(np.rint(q + zero), 0, 255)
    return values, scales, zeros


def store_on_own_grid(parts: list[Matrix], block: int) -> list[Matrix]:
    """Store as int4 those f32 matrices that lose nothing by it; the others, which are left as they are.

    A GGUF file in four bits has a scale and a minimum per block; rounding the minimum to a multiple of the scale, as
    integer zero points do, would cost as much as quantizing anew. So the zero points are f16.
    """
    from openvino import Shape, Tensor, Type
    from openvino import opset13 as op
    from openvino.op import Constant

    left: list[Matrix] = []
    for sharing in _by_constant(parts):
        matrix = sharing[0].constant.data
        found = own_grid(matrix, block)
        if found is None:
            left += sharing
            continue
        values, scales, zeros = found
        packed = (values[..., 0::2] | values[..., 1::2] << 4).reshape(-1)
        stored = Constant(Tensor(packed, Shape(values.shape), Type.u4), shared_memory=False)
        centred = op.subtract(op.convert(stored, Type.f16), op.constant(zeros))
        whole = op.reshape(op.multiply(centred, op.constant(scales)), np.array(matrix.shape), False)
        read = op.convert(whole, Type.f32)
        for part in sharing:
            part.node.input(part.port).replace_source_output(read.output(0))
    return left


def own_grid(
    matrix: npt.NDArray[np.float32], block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.float16]] | None:
    """Values (n, m / block, block) of 0..15, scales and zero points (n, m / block, 1); None where a block has no grid.

    An entry is (value - zero) * scale.
    """
    n, m = matrix.shape
    x = matrix.reshape(-1, block)
    values = np.zeros(x.shape, dtype=np.uint8)
    scales, zeros = (np.zeros((len(x), 1), dtype=np.float16) for _ in range(2))
    for at in range(0, len(x), _BLOCKS):
        open_ = np.arange(at, min(at + _BLOCKS, len(x)))
        for levels in _LEVELS:  # between the smallest and the largest entry of a block
            rows = x[open_]
            low = rows.min(axis=-1, keepdims=True)
            step = (rows.max(axis=-1, keepdims=True) - low) / levels
            step = np.where(step > 0, step, np.abs(low))  # one value in all of a block: its own size is its step
            step = np.maximum(step, _SMALLEST).astype(np.float16).astype(np.float32)  # as it is stored
            q, zero = (rows - low) / step, -low / step
            on_grid = (np.abs(q - np.rint(q)).max(axis=-1) < _OFF_GRID) & (np.abs(zero[:, 0]) < _MOST_ZERO)
            done = open_[on_grid]
            values[done], scales[done], zeros[done] = np.rint(q[on_grid]), step[on_grid], zero[on_grid]
            open_ = open_[~on_grid]
            if not len(open_):
                break
        else:
            return None
    shape = n, m // block
    return values.reshape(*shape, block), scales.reshape(*shape, 1), zeros.reshape(*shape, 1)


def _by_constant(parts: list[Matrix]) -> Iterable[list[Matrix]]:
    users: dict[str, list[Matrix]] = {}
    for part in parts:
        users.setdefault(part.constant.get_friendly_name(), []).append(part)
    return users.values()


def _is_matrix(node: Node, port: int) -> bool:
    shape = node.input_value(port).get_partial_shape()
    return bool(shape.is_static and len(shape) == 2 and _stored_at(node, port) is not None)


def _stored_at(node: Node, port: int) -> Node | None:
    """The constant that an input is made of alone, decompressed or as it is."""
    found = node.input_value(port).get_node()
    while found.get_type_name() in _BETWEEN:
        found = found.input_value(0).get_node()
    return found if found.get_type_name() == "Constant" else None
