"""`pilotfish export` of encoder-decoders: from a folder to a compared bundle, and what is refused before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiers import quick
from tiny_encoder_decoders import ENCODER_DECODERS, save_encoder_decoder
from tiny_families import save_tiny

from pilotfish.exporters.open_source import open_source
from pilotfish.exporting.export import export
from pilotfish.fetching import by_name
from pilotfish.loading.load import load
from pilotfish.runtime.errors import ModelFileError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.verifying.verify import verify

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

CELLS = {"t5 fp32": "f32", "flan int8": "f32", "bart int4": "int8", "marian int8": "int8", "whisper int8": "f32"}
CELLS |= {f"{name} int4": "f32" for name in ENCODER_DECODERS}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("cell", quick(CELLS, "flan int8", "whisper int8"))
def test_an_export_is_compared_with_its_source(tmp_path: Path, cell: str) -> None:
    name, stored = cell.split()
    source, out = save_encoder_decoder(name, tmp_path / "source"), tmp_path / "out"
    weights: Any = stored
    export(source, out, to=("onnx",), weights=weights, activations=CELLS[cell])  # type: ignore[arg-type]
    manifest = open_bundle(out).manifest
    assert manifest.encoders == {"onnx": "onnx/encoder.onnx"} and manifest.formats == {"onnx": "onnx/decoder.onnx"}
    assert manifest.decoder_start == ((2,) if name == "m2m100" else (0,)) and manifest.eos_ids[0] == 2
    assert manifest.source_kind == ("audio" if name == "whisper" else "text")
    assert manifest.canary is not None and manifest.canary.tokens[0] == manifest.decoder_start[0]
    assert bool(manifest.canary.source) == (name != "whisper")
    facts = manifest.reports["onnx"]
    assert facts["n_tokens"] > 100 and facts["canary_error"] < 0.1 and facts["greedy_prompts"] == 8
    if stored == "fp32":
        assert facts["max_difference"] < 1e-3 and facts["agreement"] == 1.0
    again = verify(out)  # against the stored answers, as on another machine
    assert again.ok and again.formats[0].parity.agreement == pytest.approx(facts["agreement"], abs=0.02)


def test_what_was_exported_is_loaded_and_answers(tmp_path: Path) -> None:
    export(save_encoder_decoder("flan", tmp_path / "source"), tmp_path / "out", to=("onnx",), weights="int8")
    with load(tmp_path / "out", engine="onnx", threads=2) as model:
        text = "the pilot fish follows the shark"
        plain = model.generate(text, max_new_tokens=12).token_ids
        assert len(plain) > 1 and model.generate(text, max_new_tokens=12).token_ids == plain


def test_a_name_of_the_catalogue_is_exported_and_opened_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_encoder_decoder("flan", tmp_path / "source")
    fetched: list[str] = []
    monkeypatch.setattr(by_name, "hub_folder", lambda name, report: fetched.append(name) or source)
    with pytest.raises(UnsupportedModelError, match="pilotfish export flan-t5-small -o flan-t5-small-bundle"):
        load("flan-t5-small")
    export("flan-t5-small", tmp_path / "out", to=("onnx",), weights="int8")
    assert set(fetched) == {"google/flan-t5-small"}
    with load(tmp_path / "out", engine="onnx", threads=1) as model:
        assert model.generate("the pilot fish", max_new_tokens=4).token_ids


def test_what_cannot_be_exported_is_refused_before(tmp_path: Path) -> None:
    source, out = save_encoder_decoder("bart", tmp_path / "source"), tmp_path / "out"
    for target in ("gguf", "ort"):
        with pytest.raises(UnsupportedModelError, match=r"encoder-decoder .* cannot be exported to .* yet"):
            export(source, out, to=("onnx", target))
    with pytest.raises(OptionError, match="is a decoder, and the model is not"):
        export(source, out, to=("onnx",), draft=save_tiny("llama", tmp_path / "draft"))
    config = json.loads((source / "config.json").read_text())
    for change, error in (
        ({"model_type": "led"}, "'led'.*attends in blocks.*Families that can be exported: .*marian"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"is_encoder_decoder": False}, "one half of a bart"),
    ):
        (source / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UnsupportedModelError, match=error):
            export(source, out, to=("onnx",))
    padding = {"model_type": "m2m_100", "decoder_start_token_id": config["pad_token_id"]}
    (source / "config.json").write_text(json.dumps({**config, **padding}))
    with pytest.raises(UnsupportedModelError, match=r"start from its padding \(0\), which has no position: not yet"):
        export(source, out, to=("onnx",))
    (source / "config.json").write_text(json.dumps({**config, "decoder_layers": 4}))
    with pytest.raises(ModelFileError, match=r"missing is .*layers\.3"):
        export(source, out, to=("onnx",))
    assert not out.exists()


@pytest.mark.parametrize("also", [(), ("decoder",), ("encoder", "decoder")])
@pytest.mark.parametrize(("name", "scaled"), [("t5", True), ("flan", False)])
def test_a_head_of_its_own_is_kept(
    tmp_path: Path, name: str, scaled: bool, also: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """T5's files say one thing of tied tables and hold another."""
    import torch
    from safetensors.torch import load_file, save_file

    source = save_encoder_decoder(name, tmp_path / "source")
    file = source / "model.safetensors"
    tensors = {part: values.clone() for part, values in load_file(file).items()}  # not the file, which is replaced
    tensors["lm_head.weight"] = torch.randn_like(tensors["shared.weight"])
    tensors |= {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in also}
    save_file(tensors, file, metadata={"format": "pt"})
    capfd.readouterr()
    model: Any = open_source(source).torch_model()
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    for side in (model.encoder, model.decoder):
        assert torch.equal(side.embed_tokens.weight, tensors["shared.weight"])
    assert model.config.scale_decoder_outputs is scaled
    assert capfd.readouterr() == ("", "")
