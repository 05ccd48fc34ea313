"""What lies at a path is found out once, and every kind of model file answers the same questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_files import imported

import pilotfish
from pilotfish.loading.opening import resolve
from pilotfish.runtime.errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from pilotfish.runtime.files import bundle as bundles
from pilotfish.runtime.files.bundle import Bundle
from pilotfish.runtime.files.gguf_model import GgufModel
from pilotfish.runtime.files.model_file import DecoderModel, ModelFile
from pilotfish.runtime.files.open_model import bundle_of, gguf_of, open_model
from pilotfish.testing.tiny_models import tiny_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, module_cache: None) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    pytest.importorskip("onnx")
    return imported(gguf)


def test_a_gguf_file_and_the_bundle_made_of_it_say_the_same(gguf: Path, folder: Path) -> None:
    one, other = open_model(gguf), open_model(folder)
    assert isinstance(one, GgufModel) and isinstance(other, Bundle)
    assert one.formats == ("gguf",) and other.formats == ("onnx",)
    assert one.context_length == other.context_length
    assert one.is_encoder_decoder == other.is_encoder_decoder is False
    assert one.chat_template == other.chat_template
    assert one.tokenizer.encode("hello the sea").tolist() == other.tokenizer.encode("hello the sea").tolist()
    assert one.tokenizer is one.tokenizer
    assert one.digest != other.digest and len(one.digest) == len(other.digest) == 64
    assert one.weight_files == (gguf,) and folder / "model.onnx" in other.weight_files
    assert one.named_draft() is other.named_draft() is None
    assert str(one) == str(gguf) and Path(other) == folder


def test_a_model_is_asked_for_what_it_is(gguf: Path, folder: Path) -> None:
    one, other = open_model(gguf), open_model(folder)
    assert gguf_of(one) is one and bundle_of(other) is other
    with pytest.raises(ModelNotFoundError, match=r"tiny\.gguf is a file, and a bundle is a folder"):
        bundle_of(one)
    with pytest.raises(UnsupportedModelError, match="holds no GGUF file; it holds onnx"):
        gguf_of(other)


def test_tokens_that_a_file_says_are_never_in_an_answer(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GgufModel(gguf)
    assert model.suppress_tokens == ()
    monkeypatch.setitem(model.file.metadata, "tokenizer.ggml.suppress_tokens", [7, 3, 1 << 30])  # type: ignore[arg-type]
    assert model.suppress_tokens == (3, 7)
    monkeypatch.setitem(model.file.metadata, "tokenizer.ggml.suppress_tokens", 7)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.suppress_tokens is 7 .* a list"):
        _ = model.suppress_tokens


def test_a_model_file_stands_for_itself(gguf: Path) -> None:
    model = resolve(gguf)
    assert resolve(model) is model
    with pilotfish.load(model, "reference", threads=1) as loaded:
        assert loaded.info.digest == model.digest


def test_a_folder_with_one_file_is_that_file(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "only.gguf").write_bytes(gguf.read_bytes())
    assert open_model(tmp_path).path == tmp_path / "only.gguf"
    (tmp_path / "other.gguf").write_bytes(gguf.read_bytes())
    with pytest.raises(OptionError, match=r"2 \.gguf files; name one: only\.gguf, other\.gguf"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        ("model.bin", ModelFileError, "not a .gguf file"),
        ("folder/config.json", ModelFileError, "does not say which family"),
        ("folder/decoder.onnx", UnsupportedModelError, "made elsewhere"),
        ("folder/readme", ModelNotFoundError, "holds no model"),
        (None, ModelNotFoundError, "no file or folder"),
    ],
)
def test_what_is_no_model_says_what_it_is(made: str | None, error: type[Exception], words: str, tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    if made is not None:
        file = tmp_path / made
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}", "utf-8")
        path = tmp_path / made.split("/")[0]
    with pytest.raises(error, match=words):
        open_model(path)


def test_loading_reads_a_bundle_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that load() finds out about it: engines, costs, known answer, draft, rules, tokenizer."""
    pytest.importorskip("onnxruntime")
    read: list[Path] = []
    real = bundles._read

    def counted(path: Path) -> object:
        read.append(path)
        return real(path)

    monkeypatch.setattr(bundles, "_read", counted)
    with pilotfish.load(folder, "onnx", threads=1) as model:
        assert model.generate("hello", max_new_tokens=4).token_ids
    assert read == [folder]


def test_every_kind_is_a_model_file() -> None:
    kinds = (*ModelFile.__subclasses__(), *DecoderModel.__subclasses__())
    assert {kind.__name__ for kind in kinds} >= {"Bundle", "GgufModel", "FolderModel"}
