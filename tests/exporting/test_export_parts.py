"""Exports in parts: the mobile pack in a bundle, formats that fail or are refused beside others that are kept."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tiny_families import save_tiny
from wrong_exporters import Broken, Spoiled

import pilotfish
from pilotfish.apps.inspection import inspect_model
from pilotfish.exporters.formats import FORMATS, readers_of
from pilotfish.exporters.mobile import onnx_static as mobile_static
from pilotfish.exporters.mobile import qnn as mobile_qnn
from pilotfish.exporters.mobile.export import OPTIONS as TARGET_OPTIONS
from pilotfish.exporters.mobile.export import TARGETS
from pilotfish.exporters.quantize.weight_form import WeightForm
from pilotfish.exporting import export as exporting
from pilotfish.exporting.export import RefusedExportError, run
from pilotfish.exporting.job import Job
from pilotfish.exporting.options import OF_FORM, OF_JOB
from pilotfish.runtime.errors import (
    CacheWriteError,
    EngineError,
    EngineMissingError,
    OptionError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.text.tokenizer import Tokenizer

EXTRAS = ("executorch", "onnxruntime_qnn", "coremltools")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "export-cache"))


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only the extra "export" is installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in EXTRAS else found(name))


def test_every_option_has_a_format_that_looks_at_it_and_every_format_looks_at_options() -> None:
    assert {name for form in FORMATS.values() for name in form.options} <= {*OF_FORM, *OF_JOB}
    assert set(TARGET_OPTIONS) == set(TARGETS) and {o for x in TARGET_OPTIONS.values() for o in x} <= {
        *OF_FORM,
        *OF_JOB,
    }
    assert all(readers_of(option) for option in (*OF_FORM, *OF_JOB))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def folder(family: str) -> Path:
        path = tmp_path_factory.getbasetemp() / "parts" / family
        if not path.exists():
            path.mkdir(parents=True)
            save_tiny(family, path, num_hidden_layers=2)
        return path

    return folder


def job(source: Path, out: Path, *to: str, **changes: Any) -> Job:
    return Job(source, out, to, **{"form": WeightForm("fp32"), **changes})


@pytest.mark.usefixtures("no_extras")
def test_the_mobile_pack_is_part_of_the_bundle(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = run(job(folders("llama"), out, "onnx", "mobile"))
    assert report.ok and [one.name for one in report.targets] == ["ort", "onnx-static"]
    assert set(report.left_out) == {"qnn", "pte"} and "pip install executorch" in report.left_out["pte"]
    manifest = open_bundle(out).manifest
    assert manifest.formats == {
        "onnx": "onnx/model.onnx",
        "ort": "ort/model.ort",
        "onnx-static": "onnx-static/model.onnx",
    }
    assert manifest.unverified == () and manifest.reports["ort"]["max_difference_to_onnx"] == 0
    assert manifest.recipe_of("onnx-static")["widths"] == "1,4,8,16"
    text = manifest.files["tokenizer.json"]
    for name in ("ort", "onnx-static"):
        assert manifest.files[f"{name}/tokenizer.json"] == text and f"{name}/README.md" in manifest.files
        assert (out / name / "tokenizer.json").stat().st_nlink > 1, "stored once"
        assert json.loads((out / name / "config.json").read_text("utf-8"))["target"] == name
        assert Tokenizer.from_file(out / name / "tokenizer.json").encode("shark").tolist()
    inspect_model(str(out), False)
    said = capsys.readouterr().out
    assert "ort/model.ort" in said and "onnx-static/model.onnx" in said
    checked = pilotfish.verify(out)
    assert checked.ok and set(checked.left_out) == {"ort", "onnx-static"}


def test_what_was_not_run_is_unverified(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = mobile_static.write

    def unrun(*given: Any) -> Any:
        return mobile_static.Written("model.onnx", write(*given).recipe)

    monkeypatch.setattr(mobile_static, "write", unrun)
    run(job(folders("llama"), tmp_path / "out", "onnx-static", "ort"))
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.unverified == ("onnx-static",) and set(manifest.reports) == {"ort"}
    inspect_model(str(tmp_path / "out"), False)
    assert "could not be run where it was made" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UnsupportedModelError, match="which holds onnx-static, ort"):
        pilotfish.load(tmp_path / "out", "onnx")


@pytest.mark.usefixtures("no_extras")
def test_targets_that_were_named_are_errors_where_they_cannot_be_made(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.Steps, "write", lambda self: pytest.fail("the long work began"))
    for name, command in {"coreml": "coremltools==9.0", "pte": "executorch==", "qnn": "onnxruntime-qnn"}.items():
        with pytest.raises(EngineMissingError, match=f"pip install {command}"):
            run(job(folders("llama"), tmp_path / "out", "onnx", name))
    with pytest.raises(UnsupportedModelError, match="normalizes queries"):
        run(job(folders("qwen3"), tmp_path / "out", "onnx-static"))
    with pytest.raises(OptionError, match="made for 256 tokens"):
        run(job(folders("llama"), tmp_path / "out", "pte", context=512))
    assert not list(tmp_path.iterdir())


def test_a_refused_format_is_left_out_and_the_others_are_kept(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(FORMATS, "onnx", Spoiled())  # type: ignore[arg-type]
        with pytest.raises(RefusedExportError, match=r"onnx: .*KL divergence.*holds gguf; the same command") as caught:
            run(job(folders("llama"), out, "onnx", "gguf"))
    assert caught.value.kept == ("gguf",) and [one.ok for one in caught.value.report.formats] == [False, True]
    manifest = open_bundle(out).manifest
    assert list(manifest.formats) == ["gguf"] and not (out / "onnx").exists()
    assert set(manifest.reports) == set(manifest.thresholds) == {"gguf"} and manifest.unverified == ()
    run(job(folders("llama"), out, "onnx"))
    assert list(open_bundle(out).manifest.formats) == ["gguf", "onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refused_format_leaves_the_one_that_was_there(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(job(folders("llama"), out, "onnx"))
    before = open_bundle(out).manifest
    monkeypatch.setitem(FORMATS, "onnx", Spoiled())  # type: ignore[arg-type]
    with pytest.raises(RefusedExportError) as caught:
        run(job(folders("llama"), out, "onnx", "onnx-static", form=WeightForm("int8"), min_agreement=0.0))
    assert caught.value.kept == ("onnx", "onnx-static")
    after = open_bundle(out).manifest
    assert after.recipe_of("onnx") == before.recipe_of("onnx") and after.reports["onnx"] == before.reports["onnx"]
    with pytest.raises(RefusedExportError) as caught:
        run(job(folders("llama"), out, "onnx", form=WeightForm("int8"), min_agreement=0.0))
    assert caught.value.kept == () and open_bundle(out).manifest == after


FAULTS = (
    (EngineError("llama.cpp is not well."), "gguf failed: llama.cpp is not well"),
    (RuntimeError("out of luck"), "gguf failed: RuntimeError: out of luck"),
    (OSError(28, "No space left on device"), "gguf failed: .*is full"),
)


@pytest.mark.parametrize(
    ("error", "said"), [FAULTS[2], *(pytest.param(*fault, marks=pytest.mark.slow) for fault in FAULTS[:2])]
)
def test_a_format_that_fails_is_left_out_and_the_others_are_kept(
    error: Exception, said: str, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setitem(FORMATS, "gguf", Broken(error))  # type: ignore[arg-type]
    with pytest.raises(RefusedExportError, match=said) as caught:
        run(job(folders("llama"), tmp_path / "out", "onnx", "gguf"))
    assert caught.value.kept == ("onnx",) and set(caught.value.report.failed) == {"gguf"}
    manifest = open_bundle(tmp_path / "out").manifest
    assert list(manifest.formats) == ["onnx"] and not [name for name in manifest.files if "gguf" in name]
    alone = CacheWriteError if isinstance(error, OSError) else type(error)
    with pytest.raises(alone, match=r"not well|luck|is full"):  # the error itself
        run(job(folders("llama"), tmp_path / "other", "gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_optional_target_that_fails_late_is_left_out(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise UnsupportedModelError("the NPU does not take this operator.")

    monkeypatch.setattr(mobile_qnn, "PACKAGES", {})
    monkeypatch.setattr(mobile_qnn, "write", cannot)
    report = run(job(folders("llama"), tmp_path / "out", "mobile", "onnx"))
    assert report.ok and "does not take this operator" in report.left_out["qnn"]
    assert "qnn" not in open_bundle(tmp_path / "out").manifest.formats


def test_a_draft_that_fails_does_not_take_the_target_with_it(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise EngineError("the draft is not well.")

    monkeypatch.setattr(exporting, "export_draft", cannot)
    with pytest.raises(RefusedExportError, match=r"draft failed: the draft is not well.*holds onnx"):
        run(job(folders("llama"), tmp_path / "out", "onnx", draft=folders("qwen2")))
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.draft is None and list(manifest.formats) == ["onnx"] and not (tmp_path / "out" / "draft").exists()


@pytest.mark.slow
def test_another_draft_takes_the_place_of_the_first(folders: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for family in ("qwen2", "mistral"):
        run(job(folders("llama"), out, "onnx", draft=folders(family)))
        assert open_bundle(out / "draft").manifest.architecture == family
    assert open_bundle(out).manifest.draft
