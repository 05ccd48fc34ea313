"""Folders that other tools made: what they are found to be, and one line for each that cannot be opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign_folders import genai_folder, ir_folder, optimum_folder, write_settings

from pilotfish.runtime.errors import ModelFileError, ModelNotFoundError, PilotfishError, UnsupportedModelError
from pilotfish.runtime.files.genai_folder import GenaiFolder
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.files.ir_folder import IrFolder
from pilotfish.runtime.files.made_elsewhere import MadeElsewhere
from pilotfish.runtime.files.onnx_folder import DecoderNames
from pilotfish.runtime.files.open_model import bundle_of, open_model
from pilotfish.runtime.files.optimum_folder import OptimumFolder
from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf", quant="F32")


def opened(path: Path) -> MadeElsewhere:
    model = open_model(path)
    assert isinstance(model, MadeElsewhere)
    return model


def changed(path: Path, **values: object) -> None:
    """Other entries in a file of JSON; None takes one out."""
    held = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))


def test_each_kind_says_what_it_is(source: Path, tmp_path: Path) -> None:
    made = {
        IrFolder: (ir_folder(source, tmp_path / "ir"), ("openvino",)),
        OptimumFolder: (optimum_folder(source, tmp_path / "optimum"), ("onnx",)),
        GenaiFolder: (genai_folder(source, tmp_path / "genai"), ("onnx",)),
    }
    judge, digests = open_model(source), set()
    for kind, (folder, formats) in made.items():
        model = opened(folder)
        assert type(model) is kind and model.formats == formats and model.path == folder
        assert (model.context_length, model.architecture, model.is_encoder_decoder) == (2048, "llama", False)
        assert model.chat_template == judge.chat_template
        assert model.tokenizer.encode("hello the sea").tolist() == judge.tokenizer.encode("hello the sea").tolist()
        assert model.tokenizer.eos_ids == judge.tokenizer.eos_ids
        assert model.graph in model.weight_files and len(model.digest) == 64
        digests.add(model.digest)
        with pytest.raises(ModelNotFoundError, match="was made elsewhere, and a bundle is a folder with"):
            bundle_of(model)
    assert len(digests) == 3


def test_a_digest_covers_what_decides_the_answers(source: Path, tmp_path: Path) -> None:
    folder = optimum_folder(source, tmp_path / "folder")
    before = opened(folder).digest
    (folder / "README.md").write_text("a note")
    assert opened(folder).digest == before
    (folder / "model.onnx_data").write_bytes(b"weights that lie beside the graph")
    assert opened(folder).digest != before


def test_settings_for_generating_are_heeded_as_in_an_export(source: Path, tmp_path: Path) -> None:
    folder = ir_folder(source, tmp_path / "folder")
    (folder / "generation_config.json").write_text(
        json.dumps({"repetition_penalty": 1.1, "suppress_tokens": [5], "eos_token_id": [3, 4]})
    )
    model = opened(folder)
    assert model.generation.repetition_penalty == 1.1 and model.suppress_tokens == (5,)
    assert {3, 4} <= model.tokenizer.eos_ids
    genai = genai_folder(source, tmp_path / "genai")
    search = {"repetition_penalty": 1.2, "max_length": 9, "past_present_share_buffer": True, "num_beams": 2}
    changed(genai / "genai_config.json", search=search)
    found = opened(genai).generation
    assert (found.repetition_penalty, found.max_length, found.unheeded) == (1.2, None, ())


def test_the_text_part_of_a_model_that_sees_counts(source: Path, tmp_path: Path) -> None:
    folder = ir_folder(source, tmp_path / "folder")
    inner = json.loads((folder / "config.json").read_text())
    text = {**inner, "model_type": "gemma3_text", "sliding_window": 512}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    model = opened(folder)
    assert (model.architecture, model.window, model.context_length) == ("gemma3_text", 512, 2048)
    changed(folder / "config.json", text_config={**text, "use_sliding_window": False})
    assert opened(folder).window is None


def test_names_are_those_that_the_settings_give(source: Path, tmp_path: Path) -> None:
    folder = genai_folder(source, tmp_path / "folder", inputs={"input_ids": "ids", "past_key_names": "k_%d"})
    assert opened_names(folder) == DecoderNames(input_ids="ids", past_key="k_%d")


def opened_names(folder: Path) -> DecoderNames:
    model = open_model(folder)
    assert isinstance(model, GenaiFolder)
    return model.names


def test_a_graph_is_found_where_the_hub_keeps_it(source: Path, tmp_path: Path) -> None:
    folder = optimum_folder(source, tmp_path / "folder")
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "decoder_model_merged.onnx")
    assert opened(folder).graph == folder / "onnx" / "decoder_model_merged.onnx"


def test_graphs_of_which_git_lfs_has_left_a_pointer(source: Path, tmp_path: Path) -> None:
    """Those that are not asked for may be pointers: a folder on the hub has a graph for each way to store numbers."""
    folder = optimum_folder(source, tmp_path / "folder")
    (folder / "model_q4.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert opened(folder).graph == folder / "model.onnx"
    (folder / "model.onnx").write_text((folder / "model_q4.onnx").read_text())
    with pytest.raises(ModelFileError, match=r"model\.onnx is a Git LFS pointer.*git lfs pull.*hf:ORG/NAME"):
        opened(folder)


def test_an_ir_without_state_is_called_that(source: Path, tmp_path: Path) -> None:
    folder = ir_folder(source, tmp_path / "folder")
    assert opened(folder).kind.endswith("its past as state")
    graph = folder / "openvino_model.xml"
    graph.write_text(graph.read_text().replace('type="ReadValue"', 'type="Parameter"'))
    assert "without state" in opened(folder).kind


def asked(path: Path) -> None:
    """Everything that loading asks of a model before its weights are opened."""
    model = opened(path)
    assert model.weight_files and model.digest and model.context_length
    assert model.tokenizer and model.generation


def no_weights(folder: Path, source: Path) -> None:
    (folder / "openvino_model.bin").unlink()


def cut_weights(folder: Path, source: Path) -> None:
    content = (folder / "openvino_model.bin").read_bytes()
    (folder / "openvino_model.bin").write_bytes(content[: len(content) // 2])


def other_xml(folder: Path, source: Path) -> None:
    (folder / "openvino_model.xml").write_text("<?xml version='1.0'?>\n<net/>")


def another_vocabulary(folder: Path, source: Path) -> None:
    write_settings(read_gguf(source), folder, vocab_size=200)


def weights_not_fetched(folder: Path, source: Path) -> None:
    (folder / "openvino_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def graph_not_fetched(folder: Path, source: Path) -> None:
    (folder / "openvino_model.xml").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def another_end(folder: Path, source: Path) -> None:
    changed(folder / "config.json", eos_token_id=5000)


def no_tokenizer(folder: Path, source: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_settings(folder: Path, source: Path) -> None:
    (folder / "config.json").unlink()


def no_length(folder: Path, source: Path) -> None:
    changed(folder / "config.json", max_position_embeddings=None)


def odd_length(folder: Path, source: Path) -> None:
    changed(folder / "config.json", max_position_embeddings="long")


def no_object(folder: Path, source: Path) -> None:
    (folder / "config.json").write_text("[1]")


def reads_and_writes(folder: Path, source: Path) -> None:
    changed(folder / "config.json", is_encoder_decoder=True)


def an_encoder(folder: Path, source: Path) -> None:
    (folder / "openvino_model.xml").rename(folder / "openvino_encoder_model.xml")


def eyes(folder: Path, source: Path) -> None:
    (folder / "openvino_model.xml").rename(folder / "openvino_language_model.xml")


BAD = [
    (no_weights, ModelFileError, r"openvino_model\.bin is missing.*Fetch or copy it"),
    (other_xml, ModelFileError, r"openvino_model\.xml is no IR of OpenVINO"),
    (cut_weights, ModelFileError, r"openvino_model\.bin is truncated: it has \d+ bytes, and .* names \d+"),
    (another_vocabulary, ModelFileError, r"tokenizer\.json is not this model's: it has 272 tokens, and the model 200"),
    (another_end, ModelFileError, r"ends answers at token 5000.*its tokenizer has 272 tokens"),
    (weights_not_fetched, ModelFileError, r"openvino_model\.bin is a Git LFS pointer.*git lfs pull"),
    (graph_not_fetched, ModelFileError, r"openvino_model\.xml is a Git LFS pointer.*git lfs pull"),
    (no_tokenizer, UnsupportedModelError, r"no tokenizer\.json.*AutoTokenizer.*save_pretrained\(\) writes the file"),
    (no_settings, ModelNotFoundError, r"has no config\.json, which says what the graph"),
    (no_length, ModelFileError, r"config\.json does not say max_position_embeddings"),
    (odd_length, ModelFileError, r"says 'long' for max_position_embeddings"),
    (no_object, ModelFileError, "does not hold a JSON object"),
    (reads_and_writes, UnsupportedModelError, r"made of several graphs.*pilotfish export FOLDER"),
    (an_encoder, UnsupportedModelError, r"several graphs \(openvino_encoder_model\.xml\).*pilotfish export FOLDER"),
    (eyes, UnsupportedModelError, r"several graphs \(openvino_language_model\.xml\)"),
]


@pytest.mark.parametrize(("spoil", "error", "words"), BAD, ids=lambda x: getattr(x, "__name__", ""))
def test_a_folder_that_is_not_whole_is_told_in_one_line(
    spoil: object, error: type[PilotfishError], words: str, source: Path, tmp_path: Path
) -> None:
    folder = ir_folder(source, tmp_path / "folder")
    asked(folder)
    spoil(folder, source)  # type: ignore[operator]
    with pytest.raises(error, match=words) as told:
        asked(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"session_options": {"provider_options": [{"cuda": {}}]}}, UnsupportedModelError, r"is made for cuda.*-e cpu"),
        ({"session_options": {"provider_options": [{"dml": {}}]}}, UnsupportedModelError, r"is made for dml.*-e cpu"),
        ({"pipeline": [{"embeddings": {}}]}, UnsupportedModelError, r"several graphs \(a pipeline of decoder graphs\)"),
        ({"filename": "other.onnx"}, ModelFileError, r"names the graph 'other\.onnx', which is not there"),
        ({"filename": "../model.onnx"}, ModelFileError, r"names the graph '\.\./model\.onnx', which is not there"),
        ({"filename": None}, ModelFileError, "names the graph None"),
        ({"inputs": 3}, ModelFileError, "has no part 'inputs'"),
        ({"session_options": {"provider_options": [{"CPU": {}}]}}, None, ""),
    ],
)
def test_what_onnxruntime_genai_would_run_otherwise_is_refused(
    changes: dict[str, object], error: type[PilotfishError] | None, words: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"outside")
    folder = genai_folder(source, tmp_path / "folder", **changes)
    if error is None:
        asked(folder)
        return
    with pytest.raises(error, match=words):
        opened_names(folder)
        asked(folder)


def test_parts_beside_the_decoder_are_refused(source: Path, tmp_path: Path) -> None:
    folder = genai_folder(source, tmp_path / "folder")
    whole = json.loads((folder / "genai_config.json").read_text())
    (folder / "genai_config.json").write_text(json.dumps({"model": {**whole["model"], "vision": {}, "embedding": {}}}))
    with pytest.raises(UnsupportedModelError, match=r"several graphs \(embedding, vision\).*builder -e cpu"):
        open_model(folder)
    (folder / "genai_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"genai_config\.json has no part 'model'"):
        open_model(folder)
