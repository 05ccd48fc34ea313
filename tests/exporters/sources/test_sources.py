"""Sources of an export: what a folder or file holds is found, and what cannot be exported is refused at once."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import random_family
from real_weights import smollm2

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_families import FAMILIES, save_tiny, tiny  # noqa: E402

from pilotfish.backends.reference.backend import BACKEND as REFERENCE  # noqa: E402
from pilotfish.exporters.open_source import SUPPORTED, open_source  # noqa: E402
from pilotfish.runtime.errors import (  # noqa: E402
    ModelFileError,
    ModelNotFoundError,
    PilotfishError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.open_model import open_model  # noqa: E402
from pilotfish.testing.tiny_models import tiny_gguf  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "tiny-llama")


def settings(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    path = folder / name
    found = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def logits(model: Any, n: int = 40) -> Any:
    with torch.no_grad():
        return model(torch.arange(n)[None] % 290).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_each_family(family: str, tmp_path: Path) -> None:
    source = open_source(str(save_tiny(family, tmp_path / "model")))
    assert (source.format, source.architecture, source.model_id) == ("huggingface", family, "model")
    assert (source.bos_id, source.add_bos, source.eos_ids, source.context_length) == (1, True, (2,), 256)
    assert source.config().model_type == family
    model = source.torch_model()
    assert model.dtype == torch.float32 and not model.training and model.config._attn_implementation == "eager"
    assert torch.equal(logits(model), logits(tiny(family)))
    assert family in SUPPORTED


def test_weights_in_parts_and_in_sixteen_bits(tmp_path: Path) -> None:
    model = tiny("qwen3").to(torch.bfloat16)
    save_tiny("qwen3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    source = open_source(tmp_path)
    expected = {name: values.float() for name, values in model.state_dict().items()}
    found = source.torch_model().state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) and found[name].dtype == torch.float32 for name in found)
    part = sorted(tmp_path.glob("model-*.safetensors"))[1]
    part.unlink()
    with pytest.raises(ModelFileError, match=rf"names {part.name}, which is not there"):
        open_source(tmp_path)


def test_the_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    text = tiny("gemma3_text").config
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(1)
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict()))
    save_tiny("gemma3_text", tmp_path)
    whole.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.architecture == "gemma3_text"
    with torch.no_grad():
        expected = whole.eval()(torch.arange(40)[None]).logits[0]
        found = source.torch_model()(torch.arange(40)[None]).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_text_part_of_a_ministral_that_sees(tmp_path: Path) -> None:
    """Its config.json says which family the text part is of."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    text = tiny("ministral3").config
    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(1)
    config = Mistral3Config(text_config=text.to_dict(), vision_config=vision.to_dict())
    whole = Mistral3ForConditionalGeneration(config).eval()
    save_tiny("ministral3", tmp_path)
    whole.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.architecture == "ministral3"
    with torch.no_grad():
        assert torch.allclose(logits(source.torch_model()), logits(whole), atol=1e-4)


def test_gemmas_activation_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    """config.json of the first Gemma says "gelu", which releases of transformers before 5 did not look at."""
    folder = save_tiny("gemma", tmp_path)
    wanted = logits(open_source(folder).torch_model())
    settings(folder, hidden_act="gelu")
    assert torch.equal(logits(open_source(folder).torch_model()), wanted)


def test_the_digest_is_of_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    first = open_source(folder).sha256
    assert first == open_source(save_tiny("llama", tmp_path / "again")).sha256
    assert first != open_source(save_tiny("llama", tmp_path / "other", seed=1)).sha256
    settings(folder, rms_norm_eps=1e-5)
    assert first != open_source(folder).sha256


def test_ends_and_beginnings(folder: Path) -> None:
    settings(folder, "generation_config.json", eos_token_id=[4, 2, -1, True])
    settings(folder, "tokenizer_config.json", add_bos_token=False)
    source = open_source(folder)
    assert (source.eos_ids, source.add_bos) == ((2, 4), False)
    settings(folder, "tokenizer_config.json", add_bos_token=None, bos_token=None)
    described = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    source = open_source(folder)
    assert (source.bos_id, source.add_bos) == (1, True)
    assert source.tokenizer.encode("a").tolist()[0] == 1


def test_chat_templates(folder: Path) -> None:
    assert "<|assistant|>" in str(open_source(folder).chat_template)
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    settings(folder, "tokenizer_config.json", chat_template=named)
    assert open_source(folder).chat_template == "chat"
    settings(folder, "tokenizer_config.json", chat_template=None)
    assert open_source(folder).chat_template is None
    (folder / "chat_template.jinja").write_text("of its own")
    assert open_source(folder).chat_template == "of its own"


@pytest.mark.parametrize(
    ("files", "license_name"),
    [
        ({}, None),
        ({"README.md": "---\nlicense: mit\ntags:\n- x\n---\n# A model"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: 'gemma'\n---\n"}, "gemma"),
        ({"LICENSE": "\n                 Apache License\n           Version 2.0"}, "apache-2.0"),
        ({"README.md": "# no front matter", "LICENSE.txt": "A License Of Our Own\n\nterms"}, "A License Of Our Own"),
    ],
)
def test_licenses(folder: Path, files: dict[str, str], license_name: str | None) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    assert open_source(folder).license == license_name


def test_a_hub_name_is_kept_from_a_cache_folder(tmp_path: Path) -> None:
    source = open_source(save_tiny("llama", tmp_path / "models--some--model-1b" / "snapshots" / "abc"))
    assert source.model_id == "some/model-1b"


LLAMA3_LATER = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": None}, ModelFileError, "which family"),
        ({"model_type": "mamba"}, UnsupportedModelError, "'mamba': not yet, because.*gemma3_text"),
        ({"model_type": "gemma3", "text_config": 3}, UnsupportedModelError, "'gemma3'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, UnsupportedModelError, "program code of its own"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModelError, "quantized already"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "activation is 'relu'"),
        ({"rope_scaling": LLAMA3_LATER}, UnsupportedModelError, "'longrope'; known are default, linear, llama3"),
        ({"rope_parameters": {"x": {"type": "dynamic"}}}, UnsupportedModelError, "'dynamic'"),
        ({"rope_parameters": [1]}, ModelFileError, "must be an object"),
        ({"hidden_size": -64}, ModelFileError, "hidden_size is -64"),
        ({"vocab_size": "many"}, ModelFileError, "vocab_size is 'many'"),
        ({"num_hidden_layers": 100_000}, ModelFileError, "no model has more"),
        ({"num_attention_heads": 3}, ModelFileError, "not one of a llama"),
        ({"rms_norm_eps": "small"}, ModelFileError, "not one of a llama"),
    ],
)
def test_configurations_that_cannot_be_exported(
    folder: Path, changes: dict[str, Any], error: type[PilotfishError], message: str
) -> None:
    settings(folder, **changes)
    with pytest.raises(error, match=message):
        open_source(folder)


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def pickled_pointer(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(POINTER)


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (pickled_pointer, ModelFileError, "pytorch_model.bin is a Git LFS pointer"),
        (replaced("tokenizer.json", POINTER), ModelFileError, "tokenizer.json is a Git LFS pointer"),
        (lambda folder: (folder / "config.json").unlink(), ModelNotFoundError, r"has no config\.json"),
        (replaced("config.json", b"{"), ModelFileError, "cannot be read as JSON"),
        (replaced("config.json", b"[" * 100_000), ModelFileError, "cannot be read as JSON"),
        (replaced("config.json", b"[1]"), ModelFileError, "does not hold a JSON object"),
        (replaced("tokenizer_config.json", b"\xff"), ModelFileError, "tokenizer_config.json cannot be read"),
        (replaced("generation_config.json", b"x"), ModelFileError, "generation_config.json cannot be read"),
        (replaced("tokenizer.json", b"{}"), ModelFileError, r"is not a tokenizer\.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), UnsupportedModelError, r"has no tokenizer\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), ModelNotFoundError, "holds no weights"),
        (pickled_only, UnsupportedModelError, "loader for weights alone does not read .*pytorch_model.bin"),
        (replaced("model.safetensors", b"\x08\0\0\0\0\0\0\0{}"), ModelFileError, "truncated or damaged"),
        (replaced("model.safetensors", b""), ModelFileError, "truncated or damaged"),
        (replaced("model.safetensors.index.json", b"{}"), ModelFileError, "no weight_map"),
        (
            replaced("model.safetensors.index.json", b'{"weight_map": {"a": "../model.safetensors"}}'),
            ModelFileError,
            "points outside of the files beside it",
        ),
    ],
)
def test_damaged_folders(
    folder: Path, damage: Callable[[Path], None], error: type[PilotfishError], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        open_source(folder)


def test_a_file_that_is_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        open_source(folder)


def test_program_code_is_never_run(folder: Path) -> None:
    (folder / "modeling_x.py").write_text("raise SystemExit('executed')")
    settings(folder, auto_map={"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"})
    with pytest.raises(UnsupportedModelError):
        open_source(folder)
    assert not [name for name in sys.modules if "modeling_x" in name]


def test_tensors_are_compared_with_the_configuration_before_any_is_read(folder: Path) -> None:
    settings(folder, num_hidden_layers=4)
    with pytest.raises(ModelFileError, match=r"has no tensor model\.layers\.3\."):
        open_source(folder).torch_model()
    settings(folder, num_hidden_layers=2)
    with pytest.raises(UnsupportedModelError, match=r"has the tensor model\.layers\.2\.\S+ which .* ignore"):
        open_source(folder).torch_model()
    settings(folder, num_hidden_layers=3, vocab_size=301)
    with pytest.raises(ModelFileError, match=r"shape \(300, 64\), but \(301, 64\)"):
        open_source(folder).torch_model()


def test_weights_that_are_no_floats(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + length].replace(b'"F32"', b'"I32"', 1)
    path.write_bytes(data[:8] + header + data[8 + length :])
    with pytest.raises(UnsupportedModelError, match="stored as I32"):
        open_source(folder)


def test_names_that_are_nowhere(tmp_path: Path) -> None:
    for name in ("nowhere", "no/such/folder", str(tmp_path / "x.gguf"), "org/model.gguf"):
        with pytest.raises(ModelNotFoundError, match="no folder and no file"):
            open_source(name)
    (tmp_path / "x.gguf").write_bytes(b"no such thing at all, but long enough")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        open_source(tmp_path / "x.gguf")


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("quant", ["F32", "Q4_1", "Q8_0"])
def test_a_gguf_file_is_what_the_reference_engine_computes(architecture: str, quant: str, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", architecture=architecture, quant=quant, tied=quant == "Q4_1")
    source = open_source(path)
    ids = np.arange(40) % 256
    weights = REFERENCE.open(open_model(path), device=None, threads=1, kv_dtype=None)
    expected = weights.session(64).forward(ids, n_logits=40).logits
    with torch.no_grad():
        found = source.torch_model()(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert (source.format, source.architecture) == ("gguf", architecture)
    assert source.tokenizer.encode("hello the").tolist()
    assert source.chat_template is not None and source.tokenizer.token(source.eos_ids[0]) == "<|im_end|>"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"nextn_predict_layers": 1}, "layers that predict several tokens"),
        ({"rope.scaling.type": "longrope"}, "'longrope'"),
        ({"rope.dimension_count": 8}, "rotates 8 of 16"),
        ({"attention.value_length": 8}, "values of 8 numbers and keys of 16"),
    ],
)
def test_gguf_files_that_cannot_be_expressed(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        open_source(tiny_gguf(tmp_path / "m.gguf", metadata=more))


def test_a_mixture_of_experts_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"a mixture of experts \(llama\.expert_count\).*pilotfish run"):
        open_source(random_family("mixtral", tmp_path / "m.gguf"))


def test_rotary_factors_of_a_gguf_file(tmp_path: Path) -> None:
    factors = np.linspace(1.0, 3.0, 8, dtype=np.float32)
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        open_source(tiny_gguf(tmp_path / "m.gguf", rope_factors=factors))
    extra = {"blk.0.surprise.weight": np.ones(4, dtype=np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.surprise\.weight"):
        open_source(tiny_gguf(tmp_path / "n.gguf", extra_tensors=extra)).torch_model()


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_is_what_the_reference_engine_and_transformers_make_of_it() -> None:
    from transformers import AutoModelForCausalLM

    path = smollm2()
    source = open_source(path)
    model = source.torch_model()
    ids = source.tokenizer.encode("The pilot fish swims ahead of the shark. def add(a, b): return")
    weights = REFERENCE.open(open_model(path), device=None, threads=1, kv_dtype=None, options={"stream": True})
    expected = weights.session(64).forward(ids, n_logits=len(ids)).logits
    with torch.no_grad():
        found = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert all(torch.equal(values, theirs.state_dict()[name]) for name, values in model.state_dict().items())
