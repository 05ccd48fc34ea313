"""A graph with its real weights on disk: one data file, the observing form and the fast form over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from ...runtime.progress import Share
from .passes import Parts, remove_dead, remove_transposes

_ALIGNMENT = 4096  # of a weight in the data file, so that it can be mapped
_INLINE_BYTES = 1024  # smaller constants stay inside the model file
_DATA = "model.onnx.data"


def write_graph(model: ir.Model, parts: Parts, folder: Path, progress: Share) -> dict[str, float]:
    """Write model.onnx.data, observing.onnx and model.onnx; the relative loss of every quantized matrix by name.

    model: the observing graph, changed into the fast one. parts: the initializers whose values are still to be made;
    matrices of the same weights in the same form are written once.
    """
    with data_file(folder) as data:
        losses = fill(model, parts, Data(data, folder), progress)
    save_both(model, folder, "model.onnx")
    return losses


def data_file(folder: Path) -> BinaryIO:
    """The file for the weights of several graphs that are saved into this folder."""
    return (folder / _DATA).open("wb")


def fill(model: ir.Model, parts: Parts, data: Data, progress: Share) -> dict[str, float]:
    """Give a graph its weights, at the end of a data file; the relative loss of every quantized matrix by name."""
    graph, losses = model.graph, dict[str, float]()
    model.ir_version = 10
    _forget_the_tracer(model)
    order = sorted(graph.initializers, key=lambda name: (name not in parts, *_owner(parts, name)))
    for i, name in enumerate(order):
        value = graph.initializers[name]
        if name in parts:
            value.const_value = data.part(value, *parts[name])
            matrix = parts[name][0]
            if matrix.bits is not None:
                losses[name.rpartition(".")[0]] = data.losses[matrix.key]
        else:
            value.const_value = data.constant(value)
        progress((i + 1) / len(order))
    return losses


def save_both(model: ir.Model, folder: Path, name: str) -> None:
    """Write observing.onnx and, without the queries, the graph of this name."""
    save(model, folder / "observing.onnx")
    graph = model.graph
    del graph.outputs[next(i for i, out in enumerate(graph.outputs) if str(out.name).startswith("query_")) :]
    remove_dead(graph)
    remove_transposes(graph)
    save(model, folder / name)


def save(model: ir.Model, path: Path) -> None:
    """Write a graph, its weights elsewhere."""
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString())


class Data:
    """The data file as it grows. What two graphs share lies in it once."""

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file, self._folder = file, folder
        self._places: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._made: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the matrix worked on
        self.losses: dict[tuple[Any, ...], float] = {}

    def part(self, value: ir.Value, matrix: Any, part: str) -> ir.ExternalTensor:
        """Where one part of a matrix lies; matrices are asked one after the other, so each is made once."""
        key = (matrix.key, part)
        if key not in self._places:
            if self._made is None or self._made[0] != matrix.key:
                self._made = None  # frees the last before the next is made
                values, self.losses[matrix.key] = matrix.values()
                self._made = matrix.key, values
            self._places[key] = self._append(self._made[1][part])
        return self._tensor(value, *self._places[key])

    def constant(self, value: ir.Value) -> Any:
        """Where anything else lies: inside the model file where it is small."""
        assert value.const_value is not None
        values = value.const_value.numpy()
        if values.nbytes <= _INLINE_BYTES:
            return ir.Tensor(values, name=value.name)
        return self._tensor(value, *self._append(values))

    def _append(self, values: np.ndarray[Any, Any]) -> tuple[int, int]:
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        return offset, values.nbytes

    def _tensor(self, value: ir.Value, offset: int, length: int) -> ir.ExternalTensor:
        assert value.dtype is not None and value.shape is not None and value.name is not None
        shape = ir.Shape(value.shape)
        return ir.ExternalTensor(
            _DATA, offset, length, value.dtype, shape=shape, name=value.name, base_dir=str(self._folder)
        )


def _owner(parts: Parts, name: str) -> tuple[str, ...]:
    """Sorts the parts of one matrix next to each other."""
    return (str(parts[name][0].key), name) if name in parts else (name,)


def _forget_the_tracer(model: ir.Model) -> None:
    """Stack traces with paths of this machine are none of the reader's business, and most of the file."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for out in node.outputs:
            out.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
