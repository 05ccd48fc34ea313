"""The weights in a Hugging Face folder: which files hold them, and how they are read.

Pickled files are programs. They are read by torch's loader for weights alone, which runs none, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast
from zipfile import is_zipfile

from ...runtime.errors import EngineMissingError, ModelFileError, UnsupportedModelError
from ...runtime.files.folder_files import has_weights, named_by, text_name
from ...runtime.files.folder_files import weight_files as safetensors_files
from ...runtime.files.safetensors_file import read_safetensors
from ...runtime.lfs_pointer import refuse_pointer
from .model_source import EXPORT_EXTRA

if TYPE_CHECKING:
    import torch

_PICKLED = "pytorch_model.bin"
_OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot")
_FLOATS = {"F32", "F16", "BF16", "F64"}
_CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "w = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "save_file({k: v.clone().contiguous() for k, v in w.items()}, sys.argv[2], {'format': 'pt'})\""
)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a folder, checked as far as their headers go; safetensors before pickled ones.

    Raises ModelNotFoundError, ModelFileError, OptionError and UnsupportedModelError.
    """
    pickled = [] if has_weights(path) else _pickled(path)
    if pickled:
        return pickled
    other = None if has_weights(path) else next((f for kind in _OTHERS for f in sorted(path.glob(kind))), None)
    if other is not None:
        refuse_pointer(other)
        raise UnsupportedModelError(
            f"{path} holds no weights in a format that is read (model.safetensors or {_PICKLED}); it has {other.name}. "
            "Save the model as safetensors where it was made."
        )
    files = safetensors_files(path)
    for file in files:
        read_safetensors(file)
    return files


def is_pickled(file: Path) -> bool:
    """Whether this is one of torch's own files."""
    return file.suffix == ".bin"


def _pickled(path: Path) -> list[Path]:
    """torch's own files; none where there are none."""
    index = path / f"{_PICKLED}.index.json"
    if index.exists():
        return named_by(index)
    return [path / _PICKLED] if (path / _PICKLED).is_file() else []


class SafetensorsWeights:
    """Weights in safetensors files, their headers read; a text part lies under its own name."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Raises ModelFileError for files that are cut short or contradict each other."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
        self._open = cast("Any", safe_open)
        self._at: dict[str, tuple[Path, str]] = {}  # name -> file, name in it
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                with self._open(file, framework="numpy") as opened:
                    for stored in opened.keys():  # noqa: SIM118
                        piece = opened.get_slice(stored)
                        self._add(path, file, stored, tuple(piece.get_shape()), piece.get_dtype())
            except (SafetensorError, OSError) as error:
                raise ModelFileError(f"{file} is truncated or damaged: {error}. Fetch or copy it again.") from error

    def _add(self, path: Path, file: Path, stored: str, shape: tuple[int, ...], dtype: str) -> None:
        name = text_name(stored)
        if name is None:
            return
        if name in self._at:
            raise _twice(path, stored)
        if dtype not in _FLOATS:
            raise _no_float(file, stored, dtype)
        self._at[name], self._shapes[name] = (file, stored), shape

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read_into(self, name: str, target: torch.Tensor) -> None:
        file, stored = self._at[name]
        with self._open(file, framework="pt") as opened:
            target.copy_(opened.get_tensor(stored))


class PickledWeights:
    """Weights in torch's own files, mapped into memory where they are of its newer form."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Raises UnsupportedModelError for a file that holds more than tensors, ModelFileError for a damaged one and
        EngineMissingError."""
        self.tensors: dict[str, torch.Tensor] = {}  # by the names that transformers gives them
        for file in files:
            for stored, tensor in _opened(file).items():
                name = text_name(stored)
                if name is None:
                    continue
                if name in self.tensors:
                    raise _twice(path, stored)
                if not tensor.is_floating_point():
                    raise _no_float(file, stored, str(tensor.dtype))
                self.tensors[name] = tensor

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read_into(self, name: str, target: torch.Tensor) -> None:
        target.copy_(self.tensors[name])


def _opened(file: Path) -> dict[str, torch.Tensor]:
    """Tensors by name. Memory: none of their own where the file is mapped; files before torch 1.6 are read whole."""
    try:
        import torch
    except ImportError as error:
        raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
    refuse_pointer(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except UnpicklingError as error:
        raise _refused(file, "it holds more than tensors, or is damaged") from error
    except Exception as error:  # a damaged file fails in whatever it meets first
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{file} is truncated or damaged: {first:.200}. Fetch or copy it again.") from error
    if not isinstance(found, dict) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise _refused(file, "it does not hold tensors by their names alone")
    return found


def _refused(file: Path, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"torch's loader for weights alone does not read {file}: {why}. If you trust who made it, convert it: "
        f"{_CONVERT} {file} {file.parent / 'model.safetensors'}"
    )


def _twice(path: Path, stored: str) -> ModelFileError:
    return ModelFileError(f"{path} holds the tensor {stored} twice. Remove the files that do not belong to it.")


def _no_float(file: Path, stored: str, dtype: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{file}: tensor {stored} is stored as {dtype}: not yet, because only whole floats are read. "
        "Give the model that this one was quantized from."
    )
