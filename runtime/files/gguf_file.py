"""Reads GGUF files. Every count, length and offset is checked against the file before it is believed.

The `gguf` package supplies the facts of the format (types and block sizes); its reader trusts the file and takes
seconds for a large vocabulary, so the header is parsed here.
Source: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ..errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from ..lfs_pointer import refuse_pointer
from .gguf_parts import gguf_parts

_MAX_DIMS = 4
_MAX_DEPTH = 4  # of arrays of arrays
# Far beyond any real file, and small enough for a header of zeros, which is sound, to be read in seconds:
_MAX_COUNT = 1 << 20  # metadata entries, tensors
_MAX_ELEMENTS = 1 << 23  # of all arrays together; a vocabulary of 262,144 tokens and its merges have 1.3 million
_MAX_NESTED = 1 << 16  # arrays inside arrays
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_NEWER = 64  # up to here types that the gguf package does not know yet are left to engines that may know them
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. `data` is a read-only view into the file."""

    name: str
    type_name: str  # "F32", "Q4_1", ...; "number 42" for one that is newer than the gguf package
    shape: tuple[int, ...]  # numpy order: (rows, columns); quantized blocks run along the last axis
    data: npt.NDArray[np.uint8]  # (rows..., bytes per row); empty where the type is not known

    def rows(self, which: npt.NDArray[np.int64]) -> GgufTensor:
        """The same matrix with these rows alone."""
        return replace(self, shape=(len(which), *self.shape[1:]), data=self.data[which])

    def values(self) -> npt.NDArray[np.float32]:
        """The tensor in f32, of its shape. Raises UnsupportedModelError for types that nobody dequantizes here."""
        try:
            found = dequantize(self.data, GGMLQuantizationType[self.type_name])
        except (NotImplementedError, KeyError):
            raise UnsupportedModelError(
                f"tensor {self.name} has the type {self.type_name}, which is not supported. "
                "Quantize the model to Q4_K_M or Q8_0."
            ) from None
        return np.asarray(found, dtype=np.float32).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata and tensors of one GGUF file."""

    path: Path
    metadata: Mapping[str, object]  # str, bool, int, float, and lists of them
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Name of the model family, which is also the prefix of its metadata keys."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise ModelFileError(f"{self.path} does not say which architecture it holds (general.architecture).")
        return value

    @property
    def in_halves(self) -> bool:
        return False

    @property
    def described_by(self) -> str:
        return "its metadata"

    def called(self, tensor: str) -> str:
        """The name of a tensor, which is that of GGUF."""
        return tensor


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """The parsed file, tensors mapped and not copied; of a split model, given any part of it, all parts as one file.

    Raises ModelNotFoundError, ModelFileError for anything that is not a whole GGUF file, and UnsupportedModelError
    for versions and tensor types that are not known here.
    """
    file = _read_one(path)
    if file.metadata.get("split.count", 0) in (0, 1):
        return file
    parts = [_read_one(part) for part in gguf_parts(path)]
    if len(parts) != file.metadata["split.count"]:
        raise ModelFileError(
            f"{path} is one of {file.metadata['split.count']} parts of a model, but its name does not say which: "
            "name them as they were, NAME-00001-of-00002.gguf and so on."
        )
    for number, part in enumerate(parts):
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, len(parts)):
            raise ModelFileError(f"{part.path} is not part {number + 1} of {len(parts)}, as its name says it is.")
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in parts):
        raise ModelFileError(f"{path} and the other parts of its model hold the same tensor twice. Fetch them again.")
    return GgufFile(parts[0].path, parts[0].metadata, tensors)


def _read_one(path: Path) -> GgufFile:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ModelFileError(f"{path} is not a file; give the path of a .gguf file.")
        with path.open("rb") as file:
            begins = file.read(4)
            if begins == b"GGUF" and facts.st_size < 24:
                raise ModelFileError(f"{path} is truncated: it ends in its header. Fetch it again.")
            if begins != b"GGUF":
                refuse_pointer(path)
                raise ModelFileError(f"{path} is not a GGUF file (it does not begin with GGUF); check what it is.")
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _Parser(path, view).file()


class _Parser:
    def __init__(self, path: Path, view: memoryview) -> None:
        self._path, self._view, self._at = path, view, 4
        self._n_elements = self._n_nested = 0  # of arrays read so far

    def file(self) -> GgufFile:
        version = self._u32()
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(f"{self._path} is a big-endian GGUF file; convert it to little-endian.")
        if version not in (2, 3):
            raise UnsupportedModelError(f"{self._path} has GGUF version {version}; versions 2 and 3 are read here.")
        n_tensors, n_entries = self._count("tensors", 24), self._count("metadata entries", 13)
        metadata: dict[str, object] = {}
        for _ in range(n_entries):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"it gives {key!r} twice")
            metadata[key] = self._value(self._u32())
        infos = [self._tensor_info() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"alignment {alignment!r} is not a power of two")
        start = -(-self._at // alignment) * alignment
        if any(at % alignment for *_, at in infos):
            raise self._damaged(f"a tensor does not begin at a multiple of {alignment} bytes")
        tensors = {name: self._tensor(name, shape, kind, start + at) for name, shape, kind, at in infos}
        if len(tensors) != n_tensors:
            raise self._damaged("two tensors have the same name")
        return GgufFile(self._path, metadata, tensors)

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is truncated or damaged: {what}. Fetch or copy it again.")

    def _take(self, n: int) -> int:
        """Start of the next n bytes, which are consumed."""
        at = self._at
        if n > len(self._view) - at:
            raise self._damaged(f"it ends at byte {len(self._view)}, inside its header")
        self._at = at + n
        return at

    def _u32(self) -> int:
        return int(struct.unpack_from("<I", self._view, self._take(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack_from(self._view, self._take(8))[0])

    def _count(self, what: str, min_bytes: int, limit: int = _MAX_COUNT) -> int:
        """A number of things of at least min_bytes each, which the rest of the file must be able to hold."""
        n = self._u64()
        if n > limit or n * min_bytes > len(self._view) - self._at:
            raise self._damaged(f"it claims {n} {what}, more than it has room for")
        return n

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, n: int) -> list[str]:
        """The next n strings: a vocabulary has 150,000, so the loop keeps to local names."""
        view, at, end, unpack, found = self._view, self._at, len(self._view), _U64.unpack_from, []
        for _ in range(n):
            first = at + 8
            at = first + unpack(view, at)[0] if first <= end else end + 1
            if at > end:
                raise self._damaged(f"it ends at byte {end}, inside its header")
            found.append(str(view[first:at], "utf-8", "replace"))
        self._at = at
        return found

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._damaged(f"it has a metadata value of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._view, dtype, 1, self._take(dtype.itemsize))[0].item()

    def _array_length(self, min_bytes: int) -> int:
        n = self._count("array elements", min_bytes, _MAX_ELEMENTS - self._n_elements)
        self._n_elements += n
        return n

    def _array(self, depth: int = 0) -> object:
        kind = self._u32()
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            n = self._array_length(dtype.itemsize)
            return np.frombuffer(self._view, dtype, n, self._take(n * dtype.itemsize)).tolist()
        if kind == _STRING:
            return self._strings(self._array_length(8))
        if kind != _ARRAY:
            raise self._damaged(f"it has metadata values of the unknown type {kind}")
        if depth >= _MAX_DEPTH:
            raise self._damaged("its metadata holds arrays inside arrays inside arrays")
        n = self._array_length(12)
        self._n_nested += n
        if self._n_nested > _MAX_NESTED:
            raise self._damaged(f"its metadata holds {n} arrays inside an array")
        return [self._array(depth + 1) for _ in range(n)]

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dims = self._string(), self._u32()
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self._damaged(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self._u64() for _ in range(n_dims))[::-1]
        return name, shape, self._u32(), self._u64()

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            if max(GGMLQuantizationType) < kind < _NEWER:
                return GgufTensor(name, f"number {kind}", shape, np.empty(0, dtype=np.uint8))
            raise UnsupportedModelError(
                f"{self._path}: tensor {name} has type number {kind}, which is not known here. "
                "Upgrade the gguf package, or quantize the model to Q4_K_M or Q8_0."
            ) from None
        elements = 1
        for n in shape:
            elements *= n
        if elements == 0 or shape[-1] % block:
            raise self._damaged(f"tensor {name!r} of shape {shape} does not consist of whole blocks of {block}")
        n_bytes = elements // block * block_bytes
        if start + n_bytes > len(self._view):
            raise self._damaged(f"tensor {name!r} ends at byte {start + n_bytes}, the file at {len(self._view)}")
        data = np.frombuffer(self._view, np.uint8, n_bytes, start)
        rows = (*shape[:-1], shape[-1] // block * block_bytes)
        return GgufTensor(name, GGMLQuantizationType(kind).name, shape, data.reshape(rows))
