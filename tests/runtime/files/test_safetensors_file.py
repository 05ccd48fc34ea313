"""safetensors files: numbers as they are stored, and whatever is not whole refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from folders import write_safetensors

from pilotfish.runtime.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from pilotfish.runtime.files.safetensors_file import read_safetensors

VALUES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def test_floats_of_every_kind_are_read(tmp_path: Path) -> None:
    found = read_safetensors(write_safetensors(tmp_path / "a", {"w": VALUES, "h": VALUES.astype(np.float16)}))
    assert np.array_equal(found["w"].values(), VALUES) and found["w"].type_name == "F32"
    assert np.array_equal(found["h"].values(), VALUES.astype(np.float16).astype(np.float32))
    halves = read_safetensors(write_safetensors(tmp_path / "b", {"w": VALUES}, bf16=True))["w"]
    expected = (VALUES.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert halves.type_name == "BF16" and np.array_equal(halves.values(), expected)


def test_the_package_of_that_name_reads_the_same(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    numpy.save_file({"b": VALUES, "a": np.arange(7, dtype=np.int32), "empty": np.zeros((0, 4), np.float16)}, path)
    ours, theirs = read_safetensors(path), numpy.load_file(path)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert np.array_equal(ours[name].array(), values) and ours[name].shape == values.shape


def test_what_are_no_floats_is_said(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m", {"w": np.arange(4, dtype=np.int32)})
    with pytest.raises(UnsupportedModelError, match=r"tensor w is stored as I32.*\.gguf"):
        read_safetensors(path)["w"].values()


def with_header(change: dict[str, object]) -> bytes:
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"w": {}}',
        (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
        with_header({})[:-1],
        with_header({}) + b"\0",
        with_header({"data_offsets": [0, 12]}),
        with_header({"data_offsets": [4, 8], "shape": [1]}),
        with_header({"data_offsets": [8, 0]}),
        with_header({"data_offsets": ["0", 8]}),
        with_header({"data_offsets": [0]}),
        with_header({"shape": [3]}),
        with_header({"shape": [-2]}),
        with_header({"shape": "2"}),
        with_header({"shape": None}),
    ],
)
def test_what_is_not_whole_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"model\.safetensors is truncated or damaged"):
        read_safetensors(path)


def test_a_pointer_of_git_lfs_is_known(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelFileError, match="git lfs pull"):
        read_safetensors(path)
    with pytest.raises(ModelNotFoundError):
        read_safetensors(tmp_path / "other")
