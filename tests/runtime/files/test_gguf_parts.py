"""Models that are split into several GGUF files: any part stands for all of them, and none is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pilotfish import load
from pilotfish.backends import get
from pilotfish.loading.load import resolve
from pilotfish.runtime.errors import ModelFileError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.files.gguf_parts import gguf_digest, gguf_parts
from pilotfish.runtime.files.open_model import open_model
from pilotfish.testing.tiny_models import tiny_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "model.gguf", tensors_per_file=8)


def test_any_part_stands_for_the_model(first: Path, tmp_path: Path) -> None:
    whole = read_gguf(tiny_gguf(tmp_path / "whole.gguf"))
    parts = gguf_parts(first)
    assert [part.name for part in parts] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        assert gguf_parts(part) == parts and resolve(part).path == first
        found = read_gguf(part)
        assert found.path == first and found.tensors.keys() == whole.tensors.keys()
        assert found.metadata["tokenizer.ggml.tokens"] == whole.metadata["tokenizer.ggml.tokens"]
        for name, tensor in whole.tensors.items():
            assert np.array_equal(found.tensors[name].data, tensor.data)


def test_a_folder_with_the_parts_of_one_model_holds_one_model(first: Path) -> None:
    assert resolve(first.parent).path == first
    tiny_gguf(first.parent / "other.gguf")
    with pytest.raises(OptionError, match=r"holds 2 \.gguf files"):
        resolve(first.parent)


@pytest.mark.parametrize("engine", ["onnx", "reference", "llamacpp"])
def test_engines_answer_as_from_one_file(engine: str, first: Path, tmp_path: Path) -> None:
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    answers = []
    for path in (gguf_parts(first)[1], tiny_gguf(tmp_path / "whole.gguf")):
        with load(path, engine, threads=1, speculate=False) as model:
            answers.append(model.generate("the hello", raw=True, max_new_tokens=12).token_ids)
    assert answers[0] == answers[1]


def test_an_engine_that_reads_one_file_says_so(first: Path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(UnsupportedModelError, match="one part of a split model, which OpenVINO does not read"):
        get("openvino").open(open_model(first), device=None, threads=1, kv_dtype=None)


def test_a_missing_part_is_named(first: Path) -> None:
    missing = gguf_parts(first)[2]
    missing.unlink()
    for use in (resolve, read_gguf, gguf_digest):
        with pytest.raises(ModelFileError, match=rf"is part 1 of 3 .* part 3 is missing: there is no file {missing}\."):
            use(first)


def test_every_part_counts_for_the_digest(first: Path) -> None:
    before, last = open_model(first).digest, gguf_parts(first)[-1]
    assert before == gguf_digest(gguf_parts(first)[1])
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert open_model(first).digest != before


def test_a_part_under_the_name_of_another_is_refused(first: Path) -> None:
    _, second, third = gguf_parts(first)
    shutil.copy(second, third)
    with pytest.raises(ModelFileError, match="is not part 3 of 3, as its name says"):
        read_gguf(first)


def test_a_part_without_its_number_is_refused(first: Path) -> None:
    renamed = first.rename(first.with_name("renamed.gguf"))
    with pytest.raises(ModelFileError, match="one of 3 parts of a model, but its name does not say which"):
        read_gguf(renamed)


def test_a_whole_file_may_be_named_like_a_part(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "model.gguf").rename(tmp_path / "model-00001-of-00001.gguf")
    assert resolve(path).path == path and read_gguf(path).path == path
