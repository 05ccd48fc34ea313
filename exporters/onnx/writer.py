"""Writes an ONNX model node by node, with its weights streamed into one external data file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

_ALIGNMENT = 4096  # of a weight in the data file, so that it can be mapped
_INLINE_BYTES = 1024  # smaller constants stay inside the model file
_TILE = (64, 512)  # rows and columns of a matrix that are copied at once
Attribute: TypeAlias = int | float | str | list[int]
_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


class OnnxWriter:
    """Collects nodes and weights; values are referred to by name.

    data: open binary file that weights are appended to; data_name: its name as the model will refer to it.
    """

    def __init__(self, data: BinaryIO, data_name: str) -> None:
        self._data, self._data_name = data, data_name
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._extra: set[str] = set()  # outputs of nodes that only the observing form has
        self._in_extra = False
        self._n_names = 0

    @contextlib.contextmanager
    def extra(self) -> Iterator[None]:
        """Nodes and outputs added inside belong to the observing form of the graph only."""
        self._in_extra = True
        try:
            yield
        finally:
            self._in_extra = False

    def input(self, name: str, dtype: str, shape: list[int | str]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: list[int | str]) -> None:
        """Declare a value as a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def weight(self, name: str, values: npt.NDArray[np.generic], like: str | None = None) -> str:
        """Add a constant. like: another weight of the same bytes, whose place in the data file is shared."""
        return self._constant(name, values, values.dtype.name, values.shape, like)

    def bits(self, name: str, bits: npt.NDArray[np.uint16], kind: str) -> str:
        """Add a constant of "float16" or "bfloat16" numbers, given as their bits."""
        return self._constant(name, bits, kind, bits.shape)

    def codes(self, name: str, codes: npt.NDArray[np.uint8], kind: str) -> str:
        """Add a constant of bytes that hold the bits of "int8", "uint8", "int4" or "uint4" values, one value each."""
        packed: npt.NDArray[np.uint8] = codes.reshape(-1)
        if kind.endswith("int4"):  # in the order of the array, low nibble first
            packed = np.append(packed, np.zeros(len(packed) % 2, dtype=np.uint8))
            packed = (packed[0::2] & np.uint8(0x0F)) | (packed[1::2] << np.uint8(4))
        return self._constant(name, packed, kind, codes.shape)

    def _constant(
        self, name: str, values: npt.NDArray[np.generic], kind: str, shape: tuple[int, ...], like: str | None = None
    ) -> str:
        if name in self._initializers:
            return name
        tensor = TensorProto(name=name, data_type=_TYPES[kind], dims=shape)
        if like is not None and self._initializers[like].external_data:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.extend(self._initializers[like].external_data)
        elif values.nbytes <= _INLINE_BYTES:
            tensor.raw_data = values.tobytes()
        else:
            self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
            place = {"location": self._data_name, "offset": self._data.tell(), "length": values.nbytes}
            for piece in _pieces(values):
                self._data.write(piece.view(np.uint8).data)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        return name

    def node(
        self, op: str, inputs: list[str], name: str = "", *, contrib: bool = False, **attributes: Attribute
    ) -> str:
        """Add a node with one output and return the output's name."""
        return self.nodes(op, inputs, [name or self.fresh(op)], contrib=contrib, **attributes)[0]

    def nodes(
        self, op: str, inputs: list[str], outputs: list[str], *, contrib: bool = False, **attributes: Attribute
    ) -> list[str]:
        """Add a node with these outputs ("" where one is not wanted)."""
        domain = "com.microsoft" if contrib else ""
        if self._in_extra:
            self._extra.update(outputs)
        node = helper.make_node(op, inputs, outputs, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return outputs

    def choice(self, condition: str, then: Callable[[], str], otherwise: str, shape: list[int | str]) -> str:
        """The float32 value that then() adds nodes for, which run where the condition, one truth value, holds; the
        value `otherwise` elsewhere. Weights that then() adds are constants like any other."""
        outside, self._nodes = self._nodes, []
        made = then()
        inside, self._nodes = self._nodes, outside
        branches = {}
        kept = helper.make_node("Identity", [otherwise], [f"{made}.otherwise"])
        for name, nodes, value in (("then", inside, made), ("else", [kept], kept.output[0])):
            info = helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)
            branches[f"{name}_branch"] = helper.make_graph(nodes, f"{made}.{name}", [], [info])
        node = helper.make_node("If", [condition], [self.fresh("If")])
        node.attribute.extend(helper.make_attribute(name, graph) for name, graph in branches.items())
        self._nodes.append(node)
        return str(node.output[0])

    def save(self, path: Path, *, observing: bool = False) -> None:
        """Write a model file over the data file; observing: with the nodes and outputs of extra()."""
        nodes = [n for n in self._nodes if observing or n.output[0] not in self._extra]
        outputs = [o for o in self._outputs if observing or o.name not in self._extra]
        graph = helper.make_graph(nodes, "pilotfish", self._inputs, outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", 21)]
        if any(n.domain for n in nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=opsets, producer_name="pilotfish", ir_version=10)
        path.write_bytes(model.SerializeToString())

    def fresh(self, op: str) -> str:
        """A name nothing else has."""
        self._n_names += 1
        return f"{op}_{self._n_names}"


def _pieces(values: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.generic]]:
    """The numbers of an array in order: of a transposed matrix some rows at a time, copied tile by tile, which is
    several times as fast as a whole copy and needs no room for one."""
    if values.flags.c_contiguous or values.ndim != 2:
        yield np.ascontiguousarray(values)
        return
    rows, columns = _TILE
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        piece = np.empty(part.shape, dtype=part.dtype)
        for at in range(0, part.shape[1], columns):
            piece[:, at : at + columns] = part[:, at : at + columns]
        yield piece
