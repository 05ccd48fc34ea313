"""Which tensor of a model's files holds values that are not numbers: asked where its logits are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import DamagedWeightsError, EngineError, NotFiniteError
from ..runtime.files.gguf_file import GgufTensor, is_gguf, read_gguf
from ..runtime.files.model_file import ModelFile
from ..runtime.files.safetensors_file import read_safetensors
from ..runtime.telemetry import without_telemetry

_AT_ONCE = 1 << 22  # values looked at together


@contextmanager
def naming(model: ModelFile) -> Iterator[None]:
    """What runs inside computes with weights of a model: an error about their logits names file and tensor."""
    try:
        yield
    except NotFiniteError as error:
        raise explained(error, model) from error


def explained(error: NotFiniteError, model: ModelFile) -> EngineError:
    """The error as it is told, with the file and, where one is to blame, the tensor: a DamagedWeightsError then."""
    try:
        require_numbers(model)
    except DamagedWeightsError as found:
        return found
    return EngineError(f"{model}: {error}")


def require_numbers(model: ModelFile) -> None:
    """Raise DamagedWeightsError where a value in the weights of a model is found not to be a number."""
    found = broken_tensor(model.weight_files)
    if found is None:
        return
    file, name = found
    raise DamagedWeightsError(
        f"{file} is damaged: the tensor {name} holds values that are not numbers (NaN or infinite), so no answer can "
        "be computed. Fetch the model anew, or export it anew from sound weights."
    )


def broken_tensor(files: Iterable[Path]) -> tuple[Path, str] | None:
    """The file and the first tensor in it with a value that is not a number; None where all are, or none can be read.

    files: .gguf, .onnx, .xml or .safetensors; others are passed over.
    """
    for file in sorted(files):
        reader = _READERS.get(".gguf" if is_gguf(file) else file.suffix)
        try:
            for name, values in () if reader is None else reader(file):
                if not np.isfinite(values).all():
                    return file, name
        except Exception:  # it only words an error: what cannot be read, for whatever reason, is not to blame
            continue
    return None


def _gguf(file: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for tensor in read_gguf(file).tensors.values():
        columns = tensor.shape[-1]
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        n = max(_AT_ONCE // columns, 1)
        for start in range(0, len(rows), n):
            part = rows[start : start + n]
            with np.errstate(all="ignore"):
                yield tensor.name, GgufTensor(tensor.name, tensor.type_name, (len(part), columns), part).values()


def _onnx(file: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    import onnx

    for tensor in onnx.load(file, load_external_data=False).graph.initializer:
        yield tensor.name, _floats(onnx.numpy_helper.to_array(tensor, base_dir=str(file.parent)))


def _openvino(file: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    with without_telemetry():
        import openvino

    for node in openvino.Core().read_model(file).get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            yield node.get_friendly_name(), _floats(node.data)


def _safetensors(file: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for tensor in read_safetensors(file).values():
        if tensor.is_float:
            yield tensor.name, tensor.values()


def _floats(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values, as a type that numpy can judge; whole numbers are numbers."""
    if values.dtype.kind in "iub":
        return np.empty(0)
    return values if values.dtype.kind == "f" else values.astype(np.float32)


_READERS = {".gguf": _gguf, ".onnx": _onnx, ".xml": _openvino, ".safetensors": _safetensors}
