"""load() of a Hugging Face folder: converted once, the same on every engine, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from family_files import random_family
from folders import floats_of, folder_of, write_safetensors
from packed_weights import quantized

import pilotfish
from pilotfish import backends
from pilotfish.exporters.onnx.decoder_graph import DecoderGraph
from pilotfish.runtime.errors import DamagedWeightsError, PilotfishError, PilotfishWarning, UnsupportedModelError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.storage import cache_dir

pytest.importorskip("onnxruntime")
PROMPT = "the hello and the hello, and the hello"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of("llama with biases", random_family("llama with biases", tmp_path / "m.gguf"), tmp_path / "Tiny")


def said(path: Path, engine: str = "onnx") -> tuple[int, ...]:
    with pilotfish.load(path, engine, threads=1) as model:
        return tuple(model.generate(PROMPT, raw=True, max_new_tokens=12).token_ids)


def test_a_folder_is_converted_once(folder: Path) -> None:
    told: list[tuple[str, float]] = []
    for _ in range(2):
        with pilotfish.load(
            folder, "onnx", threads=1, progress=lambda what, share: told.append((what, share))
        ) as model:
            assert model.generate(PROMPT, max_new_tokens=4).token_ids
    converting = [share for what, share in told if what == "preparing Tiny: converting"]
    assert converting == sorted(converting) and converting.count(1.0) == 1
    (made,) = (cache_dir() / "bundles").iterdir()
    manifest = open_bundle(made).manifest
    assert made.name.startswith("Tiny-") and manifest.source.format == "huggingface"
    assert manifest.source.sha256 == open_model(folder).digest and manifest.recipe["weights"] == "F32"


def test_the_bundle_that_is_made_answers_as_the_folder_does(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [5, 6], "min_new_tokens": 2}))
    expected = said(folder)
    (made,) = (cache_dir() / "bundles").iterdir()
    one, other = open_model(folder), open_model(made)
    assert (one.suppress_tokens, one.generation) == (other.suppress_tokens, other.generation) != ((), None)
    assert (one.chat_template, one.tokenizer.eos_ids) == (other.chat_template, other.tokenizer.eos_ids)
    assert said(made) == expected


@pytest.mark.parametrize("engine", ["reference", "llamacpp", "openvino"])
def test_every_engine_says_the_same(engine: str, folder: Path) -> None:
    if not backends.usable(backends.get(engine)):
        pytest.skip(f"{engine} is not installed")
    assert said(folder, engine) == said(folder)


def test_what_a_model_never_says_is_not_said(folder: Path) -> None:
    first = said(folder)[0]
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [first]}))
    assert first not in said(folder)


def test_settings_that_nothing_here_does_are_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"guidance_scale": 2.0, "temperature": 0.6}))
    with pytest.warns(PilotfishWarning, match="sets guidance_scale for generating"):
        said(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt, PilotfishError("stopped")])
def test_nothing_half_written_stays(error: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise error

    monkeypatch.setattr(DecoderGraph, "_head", stopped)
    with pytest.raises((KeyboardInterrupt, PilotfishError)):
        said(folder)
    assert not [*(cache_dir() / "bundles").iterdir()]


def test_another_tokenizer_is_another_model(folder: Path) -> None:
    said(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    said(folder)
    assert len([*(cache_dir() / "bundles").iterdir()]) == 2


def test_an_engine_that_cannot_says_what_still_works(folder: Path) -> None:
    (folder.parent / "made").mkdir()
    packed, _ = quantized(folder.parent / "made", "qwen3", "gptq", 4, 32)
    assert said(packed)
    with pytest.raises(UnsupportedModelError, match=r"does not open .*packed, which holds safetensors; leave"):
        said(packed, "llamacpp")


def test_a_folder_drafts_for_another_one(folder: Path) -> None:
    with pilotfish.load(folder, "onnx", draft=folder, threads=1, proposers=()) as model:
        result = model.generate(PROMPT, raw=True, max_new_tokens=12)
    assert tuple(result.token_ids) == said(folder)


def test_weights_that_are_no_numbers_are_named(folder: Path) -> None:
    tensors = floats_of("llama with biases", folder.parent / "m.gguf")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 4] = np.nan
    write_safetensors(folder / "model.safetensors", tensors, bf16=True)
    with pytest.raises(DamagedWeightsError, match=r"model\.safetensors is damaged: the tensor model\.layers\.1\.mlp"):
        said(folder)
