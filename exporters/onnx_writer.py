"""Writes an ONNX model node by node, with its weights streamed into one external data file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

_ALIGNMENT = 4096  # of a weight in the data file, so that it can be mapped
_INLINE_BYTES = 1024  # smaller constants stay inside the model file
_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64, "int32": TensorProto.INT32}


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
        self._n_names = 0

    def input(self, name: str, dtype: str, shape: list[int | str]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: list[int | str]) -> None:
        """Declare a value as a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def weight(self, name: str, values: npt.NDArray[np.generic], like: str | None = None) -> str:
        """Add a constant. like: another weight of the same bytes, whose place in the data file is shared."""
        if name in self._initializers:
            return name
        values = np.ascontiguousarray(values)
        tensor = TensorProto(name=name, data_type=_TYPES[values.dtype.name], dims=values.shape)
        if like is not None and self._initializers[like].external_data:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.extend(self._initializers[like].external_data)
        elif values.nbytes <= _INLINE_BYTES:
            tensor.raw_data = values.tobytes()
        else:
            self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
            place = {"location": self._data_name, "offset": self._data.tell(), "length": values.nbytes}
            self._data.write(memoryview(values).cast("B"))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
        self._initializers[name] = tensor
        return name

    def node(self, op: str, inputs: list[str], name: str = "", *, contrib: bool = False, **attributes: object) -> str:
        """Add a node with one output and return the output's name."""
        return self.nodes(op, inputs, [name or self._fresh(op)], contrib=contrib, **attributes)[0]

    def nodes(
        self, op: str, inputs: list[str], outputs: list[str], *, contrib: bool = False, **attributes: object
    ) -> list[str]:
        """Add a node with these outputs ("" where one is not wanted)."""
        domain = "com.microsoft" if contrib else ""
        self._nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the model file."""
        graph = helper.make_graph(
            self._nodes, "pilotfish", self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="pilotfish", ir_version=10)
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())

    def _fresh(self, op: str) -> str:
        self._n_names += 1
        return f"{op}_{self._n_names}"
