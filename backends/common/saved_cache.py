"""The bytes of a saved cache: what made it, the positions, and one array after the other. Shared by engines."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...runtime.errors import ContextFullError, OptionError
from ...runtime.interfaces import Indices, ModelInfo

_MAGIC = b"PFKV1\n"
Array = npt.NDArray[np.generic]
Layout: TypeAlias = tuple[type[np.generic], tuple[int | None, ...]]  # of an array: type and shape; None: any length


def pack(info: ModelInfo, positions: Indices, arrays: Sequence[Array]) -> bytes:
    """The state of a session: positions (n,) and whatever arrays the engine needs to hold these entries again."""
    described = [(x.dtype.str, x.shape) for x in arrays]
    header = json.dumps({"made_by": _maker(info), "n": len(positions), "arrays": described}).encode()
    parts = [header, *(np.ascontiguousarray(x).tobytes() for x in (positions.astype("<i8"), *arrays))]
    return b"".join([_MAGIC, len(header).to_bytes(8, "little"), _checksum(parts).to_bytes(4, "little"), *parts])


def unpack(
    info: ModelInfo, state: bytes, max_context: int, expected: Callable[[int], Sequence[Layout]] | None = None
) -> tuple[Indices, list[Array]]:
    """What pack() was given, as read-only views. expected: the arrays that n entries need.

    Raises OptionError for a state that is damaged, forged or of another maker, and ContextFullError.
    """
    sized, start = len(_MAGIC) + 8, len(_MAGIC) + 12
    size = int.from_bytes(state[len(_MAGIC) : sized], "little")
    damaged = OptionError("this is no saved cache, or it is damaged; save it again.")
    whole = int.from_bytes(state[sized:start], "little") == _checksum([memoryview(state)[start:]])
    if not state.startswith(_MAGIC) or start + size > len(state) or not whole:
        raise damaged
    try:
        header = json.loads(state[start : start + size])
        made_by, n, described = dict(header["made_by"]), int(header["n"]), header["arrays"]
        kinds = [(np.dtype(kind), tuple(int(d) for d in shape)) for kind, shape in described]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise damaged from None
    if made_by != _maker(info):
        differs = [f"{k}: {made_by.get(k)!r}, here {v!r}" for k, v in _maker(info).items() if made_by.get(k) != v]
        raise OptionError(
            f"this cache was saved by another model or engine ({'; '.join(differs)}); process the text again."
        )
    shapes = [(np.dtype("<i8"), (n,)), *kinds]
    if n < 0 or any(d < 0 for _, shape in shapes for d in shape) or any(k.hasobject for k, _ in shapes):
        raise damaged
    if start + size + sum(kind.itemsize * math.prod(shape) for kind, shape in shapes) != len(state):
        raise damaged
    if expected is not None and not _fits(kinds, expected(n)):
        raise damaged
    at, arrays = start + size, []
    for kind, shape in shapes:
        arrays.append(np.frombuffer(state, kind, math.prod(shape), at).reshape(shape))
        at += arrays[-1].nbytes
    positions = arrays[0].astype(np.int64)
    if n and (positions[0] < 0 or positions[-1] >= info.context_length or (np.diff(positions) <= 0).any()):
        raise damaged
    if n > max_context:
        raise ContextFullError(f"{n} saved entries do not fit; open the session with max_context={n} or more.")
    return positions, arrays[1:]


def _fits(kinds: Sequence[tuple[np.dtype[Any], tuple[int, ...]]], layouts: Sequence[Layout]) -> bool:
    if len(kinds) != len(layouts):
        return False
    for (kind, shape), (wanted, sizes) in zip(kinds, layouts, strict=True):
        alike = len(shape) == len(sizes) and all(s is None or s == d for d, s in zip(shape, sizes, strict=True))
        if kind != np.dtype(wanted) or not alike:
            return False
    return True


def _checksum(parts: Sequence[bytes | memoryview]) -> int:
    """CRC-32 of all parts, one after the other."""
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def _maker(info: ModelInfo) -> dict[str, str]:
    return {
        "digest": info.digest,
        "engine": info.engine,
        "version": info.engine_version,
        "device": info.device,
        "settings": info.settings,
    }
