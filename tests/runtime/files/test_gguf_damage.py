"""GGUF files written byte by byte: every kind of damage by its name, and every truncation."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pilotfish.runtime.errors import ModelFileError, UnsupportedModelError
from pilotfish.runtime.files.decoder_shape import decoder_shape
from pilotfish.runtime.files.gguf_file import GgufFile, read_gguf
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

U8, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 5, 6, 7, 8, 9, 10, 12


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, n: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, n) + values


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    entries: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    n_tensors: int | None = None,
    n_entries: int | None = None,
) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(entries) if n_entries is None else n_entries)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return header + b"\0" * (-len(header) % alignment) + data


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], GgufFile]:
    def written(data: bytes) -> GgufFile:
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return read_gguf(path)

    return written


Read = Callable[[bytes], GgufFile]
NAME = entry("general.architecture", STRING, text("llama"))


def test_all_value_types_and_nested_arrays(read: Read) -> None:
    nested = array(ARRAY, 2, array(U8, 2, b"\1\2") + array(STRING, 1, text("x")))
    entries = [
        NAME,
        entry("flag", BOOL, b"\1"),
        entry("big", U64, struct.pack("<Q", 2**64 - 1)),
        entry("small", I32, struct.pack("<i", -7)),
        entry("real", F64, struct.pack("<d", 0.1)),
        entry("none", ARRAY, array(F32, 0, b"")),
        entry("nested", ARRAY, nested),
        entry("odd", STRING, text(b"a\xffb")),
    ]
    found = read(gguf_bytes(entries, [])).metadata
    assert (found["flag"], found["big"], found["small"], found["real"]) == (True, 2**64 - 1, -7, 0.1)
    assert found["none"] == []
    assert found["nested"] == [[1, 2], ["x"]]
    assert found["odd"] == "a\ufffdb"


def test_alignment_of_the_file_is_used(read: Read) -> None:
    values = np.arange(8, dtype=np.float32)
    entries = [NAME, entry("general.alignment", 4, struct.pack("<I", 256))]
    file = read(gguf_bytes(entries, [tensor("a", (4, 2))], values.tobytes(), alignment=256))
    assert file.tensors["a"].data.reshape(-1).view(np.float32).tolist() == values.tolist()
    assert file.tensors["a"].shape == (2, 4)


def test_version_2_is_read(read: Read) -> None:
    assert read(gguf_bytes([NAME], [], version=2)).architecture == "llama"


SOUND = gguf_bytes([NAME], [tensor("a", (32, 2))], bytes(256))
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "a few bytes": (b"GGUF\3\0\0\0", "truncated: it ends in its header"),
    "foreign": (b"PK\3\4" + bytes(100), "not a GGUF file"),
    "html instead of a model": (b"<!DOCTYPE html><html>404 Not Found</html>", "not a GGUF file"),
    "a quarter of a million tensors": (gguf_bytes([NAME], [], n_tensors=250_000), "claims 250000 tensors"),
    "2^60 tensors": (gguf_bytes([NAME], [], n_tensors=2**60), "claims 1152921504606846976 tensors"),
    "2^60 entries": (gguf_bytes([NAME], [], n_entries=2**60), "metadata entries"),
    "one entry too many": (gguf_bytes([NAME], [], alignment=1, n_entries=2), "metadata entries|ends at byte"),
    "2^60 array elements": (gguf_bytes([entry("a", ARRAY, array(U8, 2**60, b""))], []), "array elements"),
    "2^60 strings": (gguf_bytes([entry("a", ARRAY, array(STRING, 2**60, b""))], []), "array elements"),
    "overflowing array": (gguf_bytes([entry("a", ARRAY, array(F64, 2**61, b""))], []), "array elements"),
    "a string of 2^63 bytes": (gguf_bytes([entry("a", STRING, struct.pack("<Q", 2**63))], []), "inside its header"),
    "an unknown value type": (gguf_bytes([entry("a", 13, bytes(8))], []), "unknown type 13"),
    "an unknown element type": (gguf_bytes([entry("a", ARRAY, array(99, 1, bytes(8)))], []), "unknown type 99"),
    "too deep an array": (gguf_bytes([entry("a", ARRAY, array(ARRAY, 1, b"") * 50 + bytes(64))], []), "arrays inside"),
    "the same key twice": (gguf_bytes([NAME, NAME], []), "twice"),
    "alignment 0": (gguf_bytes([entry("general.alignment", 4, bytes(4))], []), "alignment 0"),
    "alignment 3": (gguf_bytes([entry("general.alignment", 4, b"\3\0\0\0")], []), "alignment 3"),
    "alignment a string": (gguf_bytes([entry("general.alignment", STRING, text("32"))], []), "alignment '32'"),
    "alignment 2^40": (gguf_bytes([entry("general.alignment", U64, struct.pack("<Q", 2**40))], []), "alignment"),
    "no dimensions": (gguf_bytes([NAME], [tensor("a", ())], bytes(64)), "0 dimensions"),
    "nine dimensions": (gguf_bytes([NAME], [tensor("a", (1,) * 9)], bytes(64)), "9 dimensions"),
    "a dimension of zero": (gguf_bytes([NAME], [tensor("a", (32, 0))], bytes(64)), "whole blocks"),
    "dimensions that overflow": (gguf_bytes([NAME], [tensor("a", (2**62, 2**62))], bytes(64)), "ends at byte"),
    "half a block": (gguf_bytes([NAME], [tensor("a", (33,), kind=2)], bytes(64)), "blocks of 32"),
    "an offset behind the end": (gguf_bytes([NAME], [tensor("a", (4,), offset=4096)], bytes(64)), "ends at byte"),
    "an offset of 2^64 - 32": (gguf_bytes([NAME], [tensor("a", (4,), offset=2**64 - 32)], bytes(64)), "ends at byte"),
    "an offset off the grid": (gguf_bytes([NAME], [tensor("a", (4,), offset=4)], bytes(64)), "multiple of 32"),
    "two tensors of one name": (gguf_bytes([NAME], [tensor("a", (4,))] * 2, bytes(64)), "same name"),
    "too little data": (SOUND[:-1], "ends at byte"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_with_the_reason(name: str, read: Read) -> None:
    data, reason = DAMAGED[name]
    with pytest.raises(ModelFileError, match=reason) as caught:
        read(data)
    assert "file.gguf" in str(caught.value)
    assert len(str(caught.value)) < 500


UNSUPPORTED = {
    "version 1": (gguf_bytes([NAME], [], version=1), "version 1"),
    "version 4": (gguf_bytes([NAME], [], version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "an unknown tensor type": (gguf_bytes([NAME], [tensor("a", (32,), kind=4711)], bytes(64)), "type number 4711"),
    "a removed tensor type": (gguf_bytes([NAME], [tensor("a", (32,), kind=4)], bytes(64)), "type number 4"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_sound_but_not_known_is_unsupported(name: str, read: Read) -> None:
    data, reason = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModelError, match=reason):
        read(data)


def test_a_type_newer_than_the_gguf_package_is_left_to_engines(read: Read) -> None:
    found = read(gguf_bytes([NAME], [tensor("a", (32,), kind=63), tensor("b", (8,))], bytes(64))).tensors
    assert (found["a"].type_name, found["a"].shape) == ("number 63", (32,))
    with pytest.raises(UnsupportedModelError, match="tensor a has the type number 63"):
        found["a"].values()


def test_every_truncation_of_the_header_is_refused(read: Read) -> None:
    """Cut at every byte, so inside every kind of thing."""
    nested = array(ARRAY, 1, array(STRING, 1, text("x")))
    entries = [NAME, entry("flag", BOOL, b"\1"), entry("nested", ARRAY, nested), entry("n", U64, bytes(8))]
    data = gguf_bytes(entries, [tensor("a", (32, 2))], bytes(256))
    assert read(data).tensors
    for n in range(len(data)):
        with pytest.raises(ModelFileError):
            read(data[:n])


BAD_FACTORS = {"not a number": np.nan, "infinite": np.inf, "zero": 0.0, "negative": -1.0}


@pytest.mark.parametrize("name", BAD_FACTORS)
def test_rotary_factors_that_cannot_be(name: str, tmp_path: Path) -> None:
    factors = np.ones(8, dtype=np.float32)
    factors[3] = BAD_FACTORS[name]
    path = tiny_gguf(tmp_path / "tiny.gguf", sizes=Sizes(layers=1), rope_factors=factors)
    with pytest.raises(ModelFileError, match=r"tiny\.gguf.*rope_freqs\.weight"):
        decoder_shape(read_gguf(path))
