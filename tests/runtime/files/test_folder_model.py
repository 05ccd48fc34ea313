"""Hugging Face folders as models: the same description as a .gguf file of the model, and one line for what is odd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import MADE, random_family
from folders import floats_of, folder_of, settings_of, write_safetensors
from tiers import quick

from pilotfish.backends import get
from pilotfish.exporters.sources.encoder_decoder_families import NOT_YET
from pilotfish.exporters.sources.families import text_settings
from pilotfish.loading.opening import resolve
from pilotfish.runtime.errors import (
    ModelFileError,
    ModelNotFoundError,
    OptionError,
    PilotfishError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.decoder_families import FAMILIES, SILENT
from pilotfish.runtime.files.decoder_shape import decoder_shape
from pilotfish.runtime.files.folder_metadata import metadata_of
from pilotfish.runtime.files.folder_model import FolderModel
from pilotfish.runtime.files.folder_settings import Settings
from pilotfish.runtime.files.open_model import decoder_of, gguf_of, open_model
from pilotfish.runtime.interfaces import Floats

pytestmark = pytest.mark.usefixtures("module_cache")
TOKENS = np.random.default_rng(0).integers(0, 272, 60)
NOISE = 1e-5  # of the largest logit: GGUF files keep small numbers in f32


def reference_logits(path: Path) -> Floats:
    session = get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None).session()
    return session.forward(TOKENS, n_logits=len(TOKENS)).logits


def family_file(name: str, path: Path) -> Path:
    return random_family(name, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder, beside the .gguf file that it is of."""
    folder = tmp_path_factory.mktemp("made")
    return folder_of("qwen3", family_file("qwen3", folder / "m.gguf"), folder / "f")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "Tiny-Qwen"))


@pytest.mark.parametrize("name", MADE)
def test_a_folder_computes_what_the_gguf_file_of_the_model_does(name: str, tmp_path: Path) -> None:
    gguf = family_file(name, tmp_path / "m.gguf")
    folder = folder_of(name, gguf, tmp_path / "f")
    expected, found = reference_logits(gguf), reference_logits(folder)
    assert np.abs(found - expected).max() < NOISE * np.abs(expected).max()
    one, other = decoder_of(open_model(gguf)), decoder_of(open_model(folder))
    ours, theirs = decoder_shape(other.file), decoder_shape(one.file)
    assert (ours.context_length, ours.window) == (theirs.context_length, theirs.window)
    assert one.tokenizer.encode("hello the sea").tolist() == other.tokenizer.encode("hello the sea").tolist()
    assert (one.chat_template, one.tokenizer.eos_ids) == (other.chat_template, other.tokenizer.eos_ids)


def test_every_family_has_a_folder_in_the_tests() -> None:
    kinds = {kind for family in FAMILIES.values() if family.folder for kind in family.folder.silent}
    assert kinds - {made.model_type for made in MADE.values()} == {"mistral"}  # which is a llama with a window


def test_halves_are_read_as_the_numbers_that_they_are(folder: Path, tmp_path: Path) -> None:
    tensors = floats_of("qwen3", folder.parent / "m.gguf") if (folder.parent / "m.gguf").exists() else {}
    tensors = tensors or {n: t.values() for n, t in _stored(folder).items()}
    whole = {name: (x.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, x in tensors.items()}
    write_safetensors(folder / "model.safetensors", whole)
    expected = reference_logits(folder)
    write_safetensors(folder / "model.safetensors", whole, bf16=True)
    assert np.array_equal(reference_logits(folder), expected)


def _stored(folder: Path) -> dict[str, Any]:
    from pilotfish.runtime.files.safetensors_file import read_safetensors

    return dict(read_safetensors(folder / "model.safetensors"))


def split(folder: Path) -> dict[str, str]:
    """The folder's weights in two files and an index. Returns which tensor lies where."""
    tensors = {name: tensor.values() for name, tensor in _stored(folder).items()}
    names, places = sorted(tensors), dict[str, str]()
    for number, part in ((1, names[::2]), (2, names[1::2])):
        file = f"model-{number:05}-of-00002.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in part})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()
    return places


def test_a_model_in_several_files_is_one(folder: Path) -> None:
    expected = reference_logits(folder)
    split(folder)
    assert np.array_equal(reference_logits(folder), expected)
    assert len(open_model(folder).weight_files) == 2


def test_an_output_that_is_stored_is_used_unless_it_is_tied(folder: Path) -> None:
    tensors = {name: tensor.values() for name, tensor in _stored(folder).items()}
    tied = reference_logits(folder)
    head = {"lm_head.weight": np.ascontiguousarray(tensors["model.embed_tokens.weight"][::-1])}
    write_safetensors(folder / "model.safetensors", {**tensors, **head})
    assert np.array_equal(reference_logits(folder), tied[:, ::-1])
    (folder / "config.json").write_text(json.dumps(settings_of("qwen3", tie_word_embeddings=True)))
    assert np.array_equal(reference_logits(folder), tied)


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_part_of_a_model_that_sees_is_read_alone(name: str, tmp_path: Path) -> None:
    gguf = family_file(name, tmp_path / "m.gguf")
    folder = folder_of(name, gguf, tmp_path / "f")
    expected = reference_logits(folder)
    tensors = {name: tensor.values() for name, tensor in _stored(folder).items()}
    named = {f"model.language_model.{name.removeprefix('model.')}": x for name, x in tensors.items()}
    parts = ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
    others = {f"model.{part}.x.weight": np.zeros((2, 2), np.float32) for part in parts}
    write_safetensors(folder / "model.safetensors", {**named, **others})
    (folder / "config.json").write_text(json.dumps({"model_type": name, "text_config": settings_of(name)}))
    assert np.array_equal(reference_logits(folder), expected)


def test_it_answers_what_every_model_file_answers(folder: Path) -> None:
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 3], "temperature": 0.6, "repetition_penalty": 1.1, "suppress_tokens": [7]})
    )
    (folder / "chat_template.jinja").write_text("own")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    model = open_model(folder)
    assert isinstance(model, FolderModel) and decoder_of(model) is model
    assert (model.formats, model.model_id, model.license) == (("safetensors",), "Tiny-Qwen", "mit")
    assert not model.is_encoder_decoder and model.context_length == 256
    assert model.chat_template == "own" and {2, 3} <= model.tokenizer.eos_ids
    assert model.suppress_tokens == (7,) and model.generation.repetition_penalty == 1.1
    assert model.named_draft() is None and model.weight_files == (folder / "model.safetensors",)
    with pytest.raises(UnsupportedModelError, match="holds no GGUF file; it holds safetensors"):
        gguf_of(model)
    digest = model.digest
    (folder / "chat_template.jinja").write_text("another")
    assert len(digest) == 64 and open_model(folder).digest != digest


def test_a_window_that_is_not_built_bounds_the_context(made: Path, tmp_path: Path) -> None:
    """Within it everything is seen, and the answer is the model's."""
    settings = settings_of("llama with biases", model_type="mistral", sliding_window=48)
    found, _ = metadata_of(Settings(settings, tmp_path))
    assert found["llama.context_length"] == 48
    wide = settings_of("qwen3", use_sliding_window=True, sliding_window=32)
    assert metadata_of(Settings(wide, tmp_path))[0]["qwen3.context_length"] == 32
    unused = settings_of("qwen3", use_sliding_window=False, sliding_window=32)
    assert metadata_of(Settings(unused, tmp_path))[0]["qwen3.context_length"] == 256


def test_layers_of_gemma_4_are_those_of_transformers(tmp_path: Path) -> None:
    """The last one sees everything, whatever is said; pictures alone are looked at in both directions."""

    def pattern(**changes: object) -> object:
        settings = settings_of("gemma4", use_bidirectional_attention="vision", **changes)
        return metadata_of(Settings(settings, tmp_path))[0]["gemma4.attention.sliding_window_pattern"]

    near = "sliding_attention"
    assert pattern(layer_types=[near] * 5) == [True] * 4 + [False]
    silent = pattern(layer_types=None, num_hidden_layers=14)
    assert silent == [*[True] * 5, False, *[True] * 5, False, True, False]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"enable_moe_block": True}, "a mixture of experts"),
        ({"use_bidirectional_attention": "all"}, "its attention looks ahead"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rotary embedding of its longer heads"),
    ],
)
def test_what_is_not_built_of_gemma_4(changes: dict[str, object], what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        metadata_of(Settings(settings_of("gemma4", **changes), tmp_path))


@pytest.mark.parametrize("kind", [k for f in FAMILIES.values() if f.folder for k in f.folder.silent])
def test_what_is_silent_is_what_transformers_takes(kind: str) -> None:
    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    config = mapping[kind](num_attention_heads=8, hidden_size=1024, intermediate_size=64)
    folder = next(f.folder for f in FAMILIES.values() if f.folder and kind in f.folder.silent)
    for name, value in {**SILENT, **folder.silent[kind]}.items():
        if name in ("rope_theta", "rope_local_base_freq"):
            rope = config.rope_parameters
            which = "sliding_attention" if name == "rope_local_base_freq" else "full_attention"
            theirs = rope.get(which, rope)["rope_theta"]
            assert value is None or theirs == value, name
            continue
        expected = {"num_key_value_heads": 8, "head_dim": 128}.get(name) if value is None else value
        if name == "head_dim" and getattr(config, name, None) is None:
            expected = None
        assert getattr(config, name, None) == expected, name


def changed(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(settings_of("qwen3", **changes)))

    return change


def without(name: str) -> Callable[[Path], None]:
    return changed(**{name: None})


def one_shard_missing(folder: Path) -> None:
    split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def still_fetched(folder: Path) -> None:
    one_shard_missing(folder)
    (folder / ".cache/huggingface/download").mkdir(parents=True)
    (folder / ".cache/huggingface/download/abc.incomplete").write_bytes(b"x")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def not_fetched(name: str) -> Callable[[Path], None]:
    """A file that Git LFS has left its pointer for."""

    def change(folder: Path) -> None:
        if name == "pytorch_model.bin":
            (folder / "model.safetensors").unlink()
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    return change


def index_to(place: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))

    return change


def two_models(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    split(folder)
    (folder / "model.safetensors").write_bytes(whole)


def two_files(folder: Path) -> None:
    (folder / "a.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "b.safetensors")


def beside_a_gguf(folder: Path) -> None:
    family_file("qwen3", folder / "x.gguf")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def tokens(n: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        described = json.loads(path.read_text())
        described["model"]["vocab"] = {str(i): i for i in range(n)}
        described["added_tokens"] = []
        path.write_text(json.dumps(described))

    return change


def lacking(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = {key: tensor.values() for key, tensor in _stored(folder).items()}
        del tensors[name]
        write_safetensors(folder / "model.safetensors", tensors)

    return change


def holding(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = {key: tensor.values() for key, tensor in _stored(folder).items()}
        write_safetensors(folder / "model.safetensors", {**tensors, name: np.ones((2, 2), np.float32)})

    return change


ODD: list[tuple[Callable[[Path], None], type[PilotfishError], str]] = [
    (one_shard_missing, ModelFileError, r"names model-00002-of-00002\.safetensors, which is not there"),
    (still_fetched, ModelFileError, r"still being fetched.*model-00002-of-00002\.safetensors is not whole"),
    (cut_short, ModelFileError, r"model\.safetensors is truncated or damaged, or still being fetched"),
    *(
        (not_fetched(name), ModelFileError, rf"{name} is a Git LFS pointer.*git lfs pull.*hf:ORG/NAME")
        for name in ("model.safetensors", "tokenizer.json", "pytorch_model.bin", "config.json")
    ),
    (index_to("../model.safetensors"), ModelFileError, r"points outside of the files beside it, to '\.\./model"),
    (index_to("/etc/model.safetensors"), ModelFileError, r"points outside of the files beside it, to '/etc/model"),
    (two_models, OptionError, r"holds two models, model\.safetensors and the one that"),
    (two_files, OptionError, r"2 safetensors files \(a\.safetensors, b\.safetensors\)"),
    (beside_a_gguf, OptionError, r"holds two models, x\.gguf and one in safetensors"),
    (pickled, UnsupportedModelError, r"pickled.*from_pretrained\('.*Tiny-Qwen'\)\.save_pretrained"),
    (adapter, UnsupportedModelError, "an adapter alone"),
    (lambda folder: (folder / "model.safetensors").unlink(), ModelNotFoundError, "holds no weights"),
    (lambda folder: (folder / "tokenizer.json").unlink(), UnsupportedModelError, r"has no tokenizer\.json"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}") and None, ModelFileError, r"is not a tokenizer\.json"),
    (tokens(400), ModelFileError, r"tokenizer\.json has 400 tokens, and the weights beside it have rows for 272"),
    (tokens(100), ModelFileError, r"tokenizer\.json has 100 tokens, and the weights beside it have rows for 272"),
    (changed(vocab_size=300), ModelFileError, r"says vocab_size = 300, and model\.embed_tokens\.weight has 272 rows"),
    (
        changed(num_attention_heads=8),
        ModelFileError,
        r"not fit config\.json: .* has shape \(64, 128\), but \(64, 256\).*again",
    ),
    (changed(num_key_value_heads=4), ModelFileError, r"k_proj\.weight has shape"),
    (changed(num_key_value_heads=3), ModelFileError, r"not fit config\.json: .*cannot share 3 key-value heads"),
    (changed(hidden_size=128), ModelFileError, r"has shape \(64,\), but \(128,\) was expected|has shape"),
    (changed(num_hidden_layers=4), ModelFileError, r"not fit config\.json: it has no tensor model\.layers\.3\..*again"),
    (changed(num_hidden_layers=2), UnsupportedModelError, r"has the tensor model\.layers\.2\..* would ignore"),
    (changed(num_hidden_layers=-1), ModelFileError, "num_hidden_layers is -1"),
    (without("num_attention_heads"), ModelFileError, "num_attention_heads is None"),
    (changed(rope_parameters={"rope_type": "spiral"}), UnsupportedModelError, r"scaled by 'spiral' \(rope_type\)"),
    (changed(rope_scaling={"type": "dynamic", "factor": 2.0}), UnsupportedModelError, "scaled by 'dynamic'"),
    (changed(rope_parameters={"rope_type": "linear"}), ModelFileError, "factor is None"),
    (changed(rope_parameters={"rope_type": "yarn", "factor": "4"}), ModelFileError, "factor is '4'"),
    (changed(rope_scaling=[4]), ModelFileError, r"rope_scaling is \[4\]"),
    (changed(hidden_act="relu"), UnsupportedModelError, "its activation is 'relu'"),
    (
        changed(model_type="bloom"),
        UnsupportedModelError,
        r"of the family 'bloom', .* qwen3, .*\.gguf file of the model",
    ),
    (without("model_type"), ModelFileError, r"does not say which family .*model_type"),
    (lambda folder: (folder / "config.json").write_text("[]") and None, ModelFileError, "not hold a JSON object"),
    (lacking("model.norm.weight"), ModelFileError, r"has no tensor model\.norm\.weight"),
    (lacking("model.embed_tokens.weight"), ModelFileError, r"has no tensor model\.embed_tokens\.weight"),
    (lacking("model.layers.1.self_attn.q_norm.weight"), ModelFileError, r"has no tensor model\.layers\.1\.self_attn"),
    (holding("model.layers.1.self_attn.gate.weight"), UnsupportedModelError, "would ignore"),
    (changed(tie_word_embeddings=False), ModelFileError, r"has no tensor lm_head\.weight"),
]


@pytest.mark.parametrize(("damage", "error", "words"), ODD)
def test_what_is_odd_is_said_in_a_line(
    damage: Callable[[Path], None], error: type[PilotfishError], words: str, folder: Path
) -> None:
    damage(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=words) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value) and sorted(folder.rglob("*")) == before


def test_what_an_unknown_family_is_told_works(folder: Path) -> None:
    """A decoder cannot be exported either; an encoder-decoder has no .gguf file here, and some can be exported."""
    for kind, pair, words in (
        ("bloom", None, {".gguf"}),
        ("t5", True, {"pilotfish export"}),
        ("fsmt", True, set()),
    ):
        changed(model_type=kind, is_encoder_decoder=pair)(folder)
        with pytest.raises(UnsupportedModelError, match=kind) as caught:
            resolve(folder)
        assert {word for word in (".gguf", "pilotfish export") if word in str(caught.value)} == words


def test_an_encoder_decoder_that_cannot_be_exported_says_why(folder: Path) -> None:
    for kind, why in NOT_YET.items():
        changed(model_type=kind, is_encoder_decoder=True)(folder)
        with pytest.raises(UnsupportedModelError) as caught:
            resolve(folder)
        assert str(caught.value).endswith(f"It cannot be exported either: not yet, because {why}.")
        assert "pilotfish export" not in str(caught.value) and ".gguf" not in str(caught.value)
        with pytest.raises(UnsupportedModelError) as caught:
            text_settings({"model_type": kind, "is_encoder_decoder": True}, folder)
        assert f"not yet, because {why}." in str(caught.value) and ".gguf" not in str(caught.value)


def test_an_end_outside_of_the_vocabulary_is_refused(folder: Path) -> None:
    """Minus one is how some say that there is none."""
    changed(eos_token_id=-1)(folder)
    ends = open_model(folder).tokenizer.eos_ids
    for settings in ({"eos_token_id": 5000}, {"eos_token_id": [1, 5000]}):
        (folder / "generation_config.json").write_text(json.dumps(settings))
        with pytest.raises(ModelFileError, match=r"ends answers at token 5000.*tokenizer has 272 tokens"):
            open_model(folder).tokenizer  # noqa: B018
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
    assert open_model(folder).tokenizer.eos_ids >= {1} and ends


@pytest.mark.parametrize(
    "name", quick(["gemma3", "phi3 longrope", "mistral3", "smollm3", "granite", "gpt-oss", "qwen2moe"], "gemma3")
)
def test_damaged_settings_are_refused_and_never_crash(name: str, tmp_path: Path) -> None:
    """Every entry, also of rotary embeddings, replaced by what it cannot be."""
    folder = folder_of(name, family_file(name, tmp_path / "m.gguf"), tmp_path / "f")
    whole = settings_of(name)
    rope = whole.get("rope_parameters", {})
    for value in ("x", [], {}, [1], True, -1, 1.5, 999_999_999, 1e300, {"a": {"b": []}}):
        broken = [{**whole, entry: value} for entry in (*whole, *SILENT, "layer_types", "no_rope_layers")]
        broken += [{**whole, "rope_parameters": {**rope, entry: value}} for entry in rope]
        for settings in broken:
            (folder / "config.json").write_text(json.dumps(settings))
            try:
                open_model(folder)
            except PilotfishError as error:
                assert "\n" not in str(error)
