"""Entries of a GGUF file: what it says of any model, and how a value is written."""

from __future__ import annotations

from typing import Protocol

import gguf

_QUANTIZATION_VERSION = 2


class Licensed(Protocol):
    """A source, as far as its license goes."""

    @property
    def license(self) -> str | None: ...


def general_metadata(source: Licensed) -> dict[str, object]:
    """What the file says of any model."""
    general: dict[str, object] = {"general.quantization_version": _QUANTIZATION_VERSION}
    if source.license is not None:
        general["general.license"] = source.license
    return general


def add_entry(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """Add metadata of the type that its Python type stands for; token ids and counts are u32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, (list, bytes)):
        writer.add_array(key, value)
    else:
        raise TypeError(f"{key}: no GGUF type for {type(value).__name__}")
