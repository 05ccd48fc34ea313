"""The mobile pack: every target that can be written here is written, run, and compared with its source."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from real_weights import smollm2  # noqa: E402
from tiny_families import YARN, save_tiny, tiny  # noqa: E402
from torch_answers import distance, logits_in_torch, text  # noqa: E402

from pilotfish import backends  # noqa: E402
from pilotfish.exporters.mobile import coreml as mobile_coreml  # noqa: E402
from pilotfish.exporters.mobile import export as mobile  # noqa: E402
from pilotfish.exporters.mobile import ort as mobile_ort  # noqa: E402
from pilotfish.exporters.mobile import pack as mobile_pack  # noqa: E402
from pilotfish.exporters.mobile import torch_module as mobile_torch  # noqa: E402
from pilotfish.exporters.mobile.export import DEFAULT_TARGETS, TARGETS, export_mobile  # noqa: E402
from pilotfish.exporters.mobile.onnx_static import BUILDER  # noqa: E402
from pilotfish.exporters.onnx.fixed_shape_steps import StaticSteps  # noqa: E402
from pilotfish.exporters.open_source import open_source  # noqa: E402
from pilotfish.exporters.quantize.weight_form import Stored, WeightForm  # noqa: E402
from pilotfish.exporters.sources.model_source import ModelSource  # noqa: E402
from pilotfish.runtime.errors import (  # noqa: E402
    EngineMissingError,
    OptionError,
    ParityError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.bundle import Manifest, Source, describe_files, write_manifest  # noqa: E402
from pilotfish.runtime.files.open_model import open_model  # noqa: E402
from pilotfish.runtime.files.staging import new_bundle  # noqa: E402
from pilotfish.runtime.interfaces import as_tokens  # noqa: E402
from pilotfish.runtime.text.tokenizer import Tokenizer  # noqa: E402
from pilotfish.testing.tiny_models import tiny_gguf  # noqa: E402


def source(family: str, folder: Path, **changes: Any) -> ModelSource:
    return open_source(save_tiny(family, folder / family, **changes))


def bundle_of(made: mobile.MobileResult, of: ModelSource, folder: Path, form: str) -> Path:
    """A bundle with one of the targets, as an export writes it."""
    with new_bundle(folder / "bundle") as building:
        for path in (folder / "out" / form).rglob("*"):
            if path.is_file():
                target = building / path.relative_to(folder / "out")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        manifest = Manifest(
            model_id=of.model_id,
            architecture=of.architecture,
            context_length=of.context_length,
            source=Source(name=of.path.name, sha256=of.sha256, format=of.format),
            files=describe_files(building),
            formats={form: made.formats[form]},
            recipe={f"{form}.{key}": value for key, value in made.recipe[form].items()},
            reports={form: made.reports[form]},
        )
        write_manifest(building, manifest)
    return folder / "bundle"


@pytest.mark.parametrize(
    ("family", "stored"),
    [
        ("llama", "fp32"),
        ("gemma3_text", "int8"),
        *(
            pytest.param(family, "int8", marks=pytest.mark.slow)
            for family in ("llama", "qwen2", "qwen3", "phi3", "mistral")
        ),
    ],
)
def test_ort_format_answers_bit_for_bit_as_the_onnx_model(family: str, stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = export_mobile(source(family, tmp_path), out, form=WeightForm(stored), targets=("ort",))
    report = made.reports["ort"]
    assert report["max_difference_to_onnx"] == 0
    assert report["relative_difference"] < (1e-5 if stored == "fp32" else 0.15)
    assert made.formats == {"ort": "ort/model.ort"}
    assert made.unverified == ()
    assert not (out / "ort" / "model.onnx.data").exists(), "weights are inside"
    assert (out / "ort" / "model.ort").read_bytes()[4:8] == b"ORTM"
    lines = (out / "ort" / "required_operators.config").read_text().splitlines()
    needed = {name for line in lines if not line.startswith("#") for name in line.split(";")[2].split(",")}
    assert {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"} <= needed
    assert ("MatMulNBits" in needed) == (stored == "int8")
    assert str(tmp_path) not in "\n".join(lines)


@pytest.mark.parametrize(
    ("family", "stored"),
    [("llama", "fp32"), ("qwen2", "int8"), pytest.param("llama", "int8", marks=pytest.mark.slow)],
)
def test_static_graph_of_torch_weights_runs_on_its_ladder(family: str, stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    of = source(family, tmp_path)
    made = export_mobile(of, out, form=WeightForm(stored), targets=("onnx-static",))
    assert made.recipe["onnx-static"]["builder"] == str(BUILDER)
    assert made.reports["onnx-static"]["relative_difference"] < (1e-5 if stored == "fp32" else 0.15)
    path = bundle_of(made, of, tmp_path, "onnx-static")
    weights = backends.get("onnx").open(
        open_model(path), device="static", threads=2, kv_dtype=None, options={"activations": "f32"}
    )
    assert weights.info.n_heads == 2
    tokens = of.tokenizer.encode("the pilot fish swims ahead of the shark")[:20]
    with torch.inference_mode():
        wanted = of.torch_model()(input_ids=torch.from_numpy(tokens)[None]).logits[0].numpy()
    session = weights.session(128)
    session.forward(tokens[:9], n_logits=1)
    session.forward(tokens[:4], n_logits=4)  # drafted, and rejected
    session.truncate(9)
    found = np.concatenate([session.forward(part, n_logits=len(part)).logits for part in (tokens[9:13], tokens[13:])])
    limit = 1e-4 if stored == "fp32" else 0.15
    assert mobile_pack.distance(found, wanted[9:])["relative_difference"] < limit
    weights.close()


@pytest.mark.parametrize("family", ["gemma2", "granite", "smollm3"])
def test_the_torch_module_caps_and_scales_as_the_model_does(family: str) -> None:
    model, tokens = tiny(family), text(20)
    module = mobile_torch.CachedDecoder(model, 64)
    with torch.no_grad():
        found = [
            module(torch.from_numpy(tokens[a:b])[None], torch.arange(a, b)).numpy() for a, b in ((0, 13), (13, 20))
        ]
    assert distance(np.concatenate(found), logits_in_torch(model, tokens)) < 2e-5


def test_the_static_graph_stretches_as_yarn_does(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    of = source("llama", tmp_path, rope_parameters=YARN)
    made = export_mobile(of, out, form=WeightForm("fp32"), targets=("onnx-static",))
    assert made.reports["onnx-static"]["relative_difference"] < 1e-5


def test_a_gguf_file_keeps_its_own_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    of = open_source(tiny_gguf(tmp_path / "tiny.gguf", quant="Q4_1"))
    out = tmp_path / "out"
    out.mkdir()
    made = export_mobile(of, out, targets=("onnx-static", "ort"))
    assert made.recipe["ort"]["weights"] == "source"
    assert made.reports["onnx-static"]["relative_difference"] < 1e-4  # activations in f32: nothing is lost
    assert made.reports["ort"]["relative_difference"] < 0.15


def test_every_folder_has_what_an_application_needs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    of = source("llama", tmp_path)
    seen = list[tuple[str, float]]()
    export_mobile(of, out, form=WeightForm("fp32"), targets=("ort", "onnx-static"), progress=lambda *x: seen.append(x))
    for name in ("ort", "onnx-static"):
        facts = json.loads((out / name / "config.json").read_text("utf-8"))
        assert facts["eos_ids"] == list(of.eos_ids)
        assert (facts["n_layers"], facts["kv_heads"], facts["head_dim"]) == (3, 1, 32)
        assert Tokenizer.from_file(out / name / "tokenizer.json").encode("shark").tolist()
        text = (out / name / "README.md").read_text("utf-8")
        assert text.startswith("# ")
        assert "```" in text
        assert "{" not in text.replace("{{", "").split("```")[0]
    assert not list(out.glob(".*")), "nothing temporary stays"
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_what_the_static_graph_cannot_express_is_refused_with_the_reason(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for family, why in {"qwen3": "normalizes", "phi3": "one matrix", "mistral": "windows"}.items():
        with pytest.raises(UnsupportedModelError, match=why):
            export_mobile(source(family, tmp_path), out, form=WeightForm("int8"), targets=("onnx-static",))
    assert not list(out.iterdir())


def test_targets_that_were_not_named_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    missing = ("executorch", "onnxruntime_qnn", "coremltools")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    out = tmp_path / "out"
    out.mkdir()
    of = source("qwen3", tmp_path)
    made = export_mobile(of, out, form=WeightForm("int8"))
    assert set(made.formats) == {"ort"}
    assert set(made.left_out) == set(DEFAULT_TARGETS) - {"ort"}
    assert "executorch" in made.left_out["pte"]
    assert "pip install" in made.left_out["qnn"]
    with pytest.raises(EngineMissingError, match=r"pip install coremltools==9\.0"):
        export_mobile(of, out, targets=("coreml",))
    with pytest.raises(OptionError, match=", ".join(TARGETS)):
        export_mobile(of, out, targets=("tflite",))


def test_a_model_too_large_for_a_flatbuffer_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mobile_ort, "LARGEST", 50_000)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UnsupportedModelError, match="at most"):
        export_mobile(source("llama", tmp_path), out, form=WeightForm("fp32"), targets=("ort",))
    assert not list(out.iterdir())


def test_a_wrong_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mobile_ort._logits
    monkeypatch.setattr(
        mobile_ort, "_logits", lambda model, *rest: right(model, *rest) * (2 if model.suffix == ".ort" else 1)
    )
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ParityError, match="otherwise than the ONNX model"):
        export_mobile(source("llama", tmp_path), out, form=WeightForm("fp32"), targets=("ort",))
    assert not list(out.iterdir())


def test_steps_of_the_static_graph_stay_in_the_window() -> None:
    steps = StaticSteps(1, 1, 2, width=4, window=6)
    new = {name: np.ones((1, 1, 4, 2), np.float32) for name in ("new_key_0", "new_value_0")}
    steps.inputs(as_tokens([5, 6, 7, 8]))
    steps.store(new, 4)
    last = steps.inputs(as_tokens([9, 3]))
    assert last["position_ids"].tolist() == [[4, 5, 5, 5]]
    assert last["place"].sum() == 2  # spare rows have no place
    assert last["past_key_0"][0, 0, :, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert (last["mask"][0, 0, 0] == 0).tolist() == [True] * 5 + [False]


def test_core_ml_beside_a_numpy_that_it_cannot_use_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, there = importlib.util.find_spec, importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there if name == "coremltools" else found(name))
    monkeypatch.setattr(mobile_coreml.np, "__version__", "2.4.1")
    of = source("llama", tmp_path)
    monkeypatch.setattr(type(of), "torch_model", lambda *_, **__: pytest.fail("the long work began"))
    with pytest.raises(EngineMissingError, match=r"numpy below 2\.4, and this is 2\.4\.1.*'numpy<2\.4'"):
        export_mobile(of, tmp_path, targets=("coreml",))


def test_smoothing_levels_channels_and_changes_no_answer(tmp_path: Path) -> None:
    model: Any = mobile_torch.own_copy(source("qwen2", tmp_path).torch_model())
    tokens = as_tokens(range(3, 43))
    ids = torch.from_numpy(tokens)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits[0].numpy()
        mobile_torch.smooth(model, [tokens])
        after = model(input_ids=ids).logits[0].numpy()
    assert mobile_pack.distance(after, before)["relative_difference"] < 1e-5
    layers = [module for module in model.modules() if isinstance(module, mobile_torch.Smoothed)]
    assert len(layers) == 7 * model.config.num_hidden_layers + 1
    for layer in layers:  # as large as the weights that they meet
        layer.linear.register_forward_pre_hook(lambda module, x: seen.append((module.weight, x[0])))
    seen = list[tuple[Any, Any]]()
    with torch.inference_mode():
        model(input_ids=ids)
    for weight, x in seen:
        torch.testing.assert_close(x[0].abs().amax(0), weight.abs().amax(0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_executorch_program_reads_several_tokens_and_takes_them_back(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="pip install executorch==1.5.1 torch==2.13.0")
    out = tmp_path / "out"
    out.mkdir()
    for family, stored, limit in (("llama", "fp32", 1e-4), ("qwen2", "int8", 0.15)):
        made = export_mobile(source(family, tmp_path), out, form=WeightForm(stored), targets=("pte",), context=128)
        assert made.reports["pte"]["relative_difference"] < limit
        assert made.unverified == ()


@pytest.mark.slow
def test_a_context_binary_runs_in_the_emulator(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="pip install onnxruntime-qnn")
    out = tmp_path / "out"
    out.mkdir()
    made = export_mobile(source("llama", tmp_path), out, form=WeightForm("int8"), targets=("qnn",))
    report = made.reports["qnn"]
    assert report["relative_difference"] < 0.5
    assert report["relative_difference_to_rounding"] < 0.1
    assert (out / "qnn" / "context_qnn.bin").stat().st_size > 10_000


@pytest.mark.slow
def test_a_core_ml_package_is_written_and_marked_as_not_run(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="pip install coremltools==9.0")
    out = tmp_path / "out"
    out.mkdir()
    made = export_mobile(source("llama", tmp_path), out, form=WeightForm("fp32"), targets=("coreml",), context=128)
    assert (out / made.formats["coreml"]).is_file()
    assert "coreml" in made.unverified or made.reports["coreml"]


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_as_ort_and_static(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = export_mobile(open_source(smollm2()), out, form=WeightForm("int8"), targets=("ort", "onnx-static"))
    print(made.reports)
    assert made.reports["ort"]["max_difference_to_onnx"] == 0
    assert min(report["agreement"] for report in made.reports.values()) >= 0.9
