"""Reads safetensors files, mapped and not copied. Every length and offset is checked against the file first.

The package of that name cannot hand bfloat16 to numpy, which is what most models are stored in.
Source: the safetensors format: the header's length in 8 bytes, a header in JSON, and the values.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from ..lfs_pointer import refuse_pointer

_MAX_HEADER = 100_000_000  # bytes, as the format's own library has it
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_KINDS = {
    **_FLOATS,
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One tensor. `data` is a read-only view of its bytes in the file."""

    name: str
    type_name: str  # "F32", "BF16", ..., as the format names them
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]
    mapped: mmap.mmap = field(repr=False)
    start: int  # of the data in the file

    def rows(self, which: npt.NDArray[np.int64]) -> SafeTensor:
        """The same matrix with these rows alone."""
        data = self.data.reshape(self.shape[0], -1)[which].reshape(-1)
        return replace(self, shape=(len(which), *self.shape[1:]), data=data)

    @property
    def is_float(self) -> bool:
        return self.type_name in _FLOATS

    def array(self) -> npt.NDArray[Any]:
        """The numbers as they are stored, a view of the tensor's shape; BF16 as its bits. Raises
        UnsupportedModelError for types that numpy has no like of."""
        kind = _KINDS.get(self.type_name)
        if kind is None:
            raise UnsupportedModelError(
                f"tensor {self.name} is stored as {self.type_name}, which is not read here. Give the model that this "
                "one was quantized from, or a .gguf file of it."
            )
        return self.data.view(kind).reshape(self.shape)

    def values(self) -> npt.NDArray[np.float32]:
        """The tensor in f32, of its shape. Raises UnsupportedModelError for what are no floats."""
        if not self.is_float:
            raise UnsupportedModelError(
                f"tensor {self.name} is stored as {self.type_name}, and floats were expected (F32, F16, BF16). Give "
                "the model that this one was quantized from, or a .gguf file of it."
            )
        stored = self.array()
        if self.type_name == "F32":
            return np.asarray(stored, dtype=np.float32)
        found: npt.NDArray[np.float32]
        if self.type_name == "BF16":  # the upper half of an f32
            found = np.left_shift(stored, np.uint32(16), dtype=np.uint32).view(np.float32)
        else:
            found = stored.astype(np.float32)
        self._let_go()
        return found

    def _let_go(self) -> None:
        """Take the tensor's pages out of this process's memory; the file's cache keeps them for who reads them next."""
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = self.start + len(self.data) - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED, first, length)


def read_safetensors(path: Path) -> Mapping[str, SafeTensor]:
    """The tensors of a file by their names, mapped and not copied.

    Raises ModelNotFoundError, and ModelFileError for anything that is not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            refuse_pointer(path)
            if size <= 8:
                raise _damaged(path, "it ends before its header")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}.") from error
    length = int.from_bytes(mapped[:8], "little")
    if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise _damaged(path, f"its header claims {length} bytes, and {size - 8} follow")
    try:
        header = json.loads(mapped[8 : 8 + length])
        entries = {name: facts for name, facts in header.items() if name != "__metadata__"}
        found = {name: _tensor(name, facts, mapped, 8 + length) for name, facts in entries.items()}
        _require_whole(entries, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise _damaged(path, str(error)) from error
    return found


def _tensor(name: str, facts: Mapping[str, Any], mapped: mmap.mmap, start: int) -> SafeTensor:
    room = len(mapped) - start
    shape, (begin, end) = tuple(facts["shape"]), facts["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)) or not begin <= end <= room:
        raise ValueError(f"{room} bytes of values are there, and the tensor {name!r} ends at {end}")
    kind = _KINDS.get(facts["dtype"])
    if kind is not None and math.prod(shape) * np.dtype(kind).itemsize != end - begin:
        raise ValueError(f"the tensor {name!r} of shape {shape} has {end - begin} bytes")
    data = np.frombuffer(mapped, np.uint8, end - begin, start + begin)
    return SafeTensor(name, str(facts["dtype"]), shape, data, mapped, start + begin)


def _require_whole(entries: Mapping[str, Mapping[str, Any]], n_bytes: int) -> None:
    """Raise ValueError unless the tensors lie one behind the other and nothing else is there."""
    at = 0
    for begin, end in sorted(tuple(facts["data_offsets"]) for facts in entries.values()):
        if begin != at:
            raise ValueError(f"a tensor begins at byte {begin} of the values, where the one before it ends at {at}")
        at = end
    if at != n_bytes:
        raise ValueError(f"{at} bytes of values were announced, and {n_bytes} are there")


def _damaged(path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"{path} is truncated or damaged, or still being fetched: {what}. Fetch or copy it again.")
