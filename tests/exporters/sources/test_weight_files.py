"""Weights in torch's own files: read as tensors alone, equal to the same weights in safetensors, or refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_encoder_decoders import save_encoder_decoder
from tiny_families import save_tiny

from pilotfish.exporters.open_source import open_source
from pilotfish.exporters.sources.weight_files import PickledWeights, SafetensorsWeights
from pilotfish.runtime.errors import ModelFileError, PilotfishError, UnsupportedModelError

torch = pytest.importorskip("torch", reason="exporting needs torch")

SAVED = {
    "llama": lambda folder: save_tiny("llama", folder),
    "t5": lambda folder: save_encoder_decoder("t5", folder),  # whose tables are one
    "marian": lambda folder: save_encoder_decoder("marian", folder),  # whose positions are computed
}


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: values.clone() for name, values in load_file(folder / "model.safetensors").items()}


def whole(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")


def of_before_1_6(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def in_parts(folder: Path) -> None:
    tensors = tensors_of(folder)
    parts = {f"pytorch_model-0000{i}-of-00002.bin": list(tensors)[i - 1 :: 2] for i in (1, 2)}
    for part, names in parts.items():
        torch.save({name: tensors[name] for name in names}, folder / part)
    places = {name: part for part, names in parts.items() for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("stored", [whole, of_before_1_6, in_parts], ids=lambda stored: stored.__name__)
@pytest.mark.parametrize("name", SAVED)
def test_a_pickled_model_is_the_same_model(tmp_path: Path, name: str, stored: Callable[[Path], None]) -> None:
    folder = SAVED[name](tmp_path / "source")
    expected = open_source(folder)
    assert isinstance(expected.weights, SafetensorsWeights)
    theirs = expected.torch_model().state_dict()
    stored(folder)
    assert isinstance(open_source(folder).weights, SafetensorsWeights)  # the safe file goes first
    (folder / "model.safetensors").unlink()
    found = open_source(folder)
    assert isinstance(found.weights, PickledWeights) and found.sha256 != expected.sha256
    ours = found.torch_model().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(values, theirs[part]) for part, values in ours.items())


class Program:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = save_tiny("llama", tmp_path / "source")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_program_among_the_weights_is_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "pytorch_model.bin"
    torch.save({"weight": torch.ones(2), "more": Program()}, file)
    with pytest.raises(UnsupportedModelError, match="holds more than tensors, or is damaged") as refused:
        open_source(folder)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_the_refusal_says_how_a_file_is_converted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    from safetensors.torch import load_file

    values = torch.arange(6.0).reshape(2, 3)
    both = {"a": values, "b": values}  # one memory under two names

    class Named(dict[str, Any]):
        """Tensors with something to remember: what older trainers saved."""

    monkeypatch.setattr(sys.modules[__name__], "Named", Named, raising=False)
    Named.__qualname__ = "Named"
    saved = Named(both)
    saved.settings = Namespace(steps=3)  # type: ignore[attr-defined]
    torch.save(saved, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="If you trust who made it") as refused:
        open_source(folder)
    said = re.fullmatch(r'.*: python -c "(?P<code>.*)" (?P<source>\S+) (?P<made>\S+)', str(refused.value))
    assert said is not None
    monkeypatch.setattr(sys, "argv", ["-c", said["source"], said["made"]])
    exec(said["code"], {})
    made = load_file(folder / "model.safetensors")
    assert made.keys() == both.keys() and all(torch.equal(made[name], values) for name in both)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ([1, 2], UnsupportedModelError, "does not hold tensors by their names alone"),
        ({"model": {"weight": [1.0]}}, UnsupportedModelError, "does not hold tensors by their names alone"),
        (
            {"model.norm.weight": "ints"},
            UnsupportedModelError,
            r"model\.norm\.weight is stored as torch\.int8: not yet",
        ),
    ],
)
def test_what_is_no_table_of_floats(folder: Path, content: Any, error: type[PilotfishError], message: str) -> None:
    if isinstance(content, dict) and "ints" in content.values():
        content = {"model.norm.weight": torch.ones(2, dtype=torch.int8)}
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(error, match=message):
        open_source(folder)


@pytest.mark.parametrize("content", [b"", b"not a file of torch's", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"pytorch_model\.bin.*damaged"):
        open_source(folder)


def test_a_file_that_is_cut_short_is_named(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save({"model.norm.weight": torch.ones(4096)}, file)
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"pytorch_model\.bin.*damaged"):
        open_source(folder)


def test_other_kinds_of_files_are_named(folder: Path) -> None:
    (folder / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin\); it has tf_model\.h5"):
        open_source(folder)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    source = save_encoder_decoder("bart", tmp_path / "source")
    tensors = tensors_of(source)
    name = "model.decoder.layers.1.fc1.weight"
    torch.save({part: values for part, values in tensors.items() if part != name}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=rf"missing is {re.escape(name)}"):
        open_source(source).torch_model()
