"""Exports of tiny models: every family, format and form; what is refused, kept, resumed and verified again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_weights import smollm2
from tiers import quick

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_families import families_of, save_tiny
from wrong_exporters import Spoiled

import pilotfish
from pilotfish import backends
from pilotfish.apps import cli
from pilotfish.exporters.formats import FORMATS
from pilotfish.exporters.parity.thresholds import Thresholds
from pilotfish.exporters.quantize.weight_form import Stored, WeightForm
from pilotfish.exporting import export as exporting
from pilotfish.exporting import prepare as preparing
from pilotfish.exporting.export import RefusedExportError, run
from pilotfish.exporting.job import Job
from pilotfish.runtime.errors import (
    CacheWriteError,
    EngineMissingError,
    ModelFileError,
    OptionError,
    ParityError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.install import install_command
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.verifying import verify as verifying

FORMS: tuple[Stored, ...] = ("fp32", "int8", "int4")
# Random models prefer no token by much, so rounding turns many a best one; KL and relative difference do the judging.
LEAST = {"fp32": None, "fp16": None, "int8": 0.8, "int4": 0.1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "export-cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a family as a Hugging Face folder."""

    def folder(family: str) -> Path:
        path = tmp_path_factory.getbasetemp() / "families" / family
        if not path.exists():
            path.mkdir(parents=True)
            save_tiny(family, path)
            (path / "LICENSE").write_text("Apache License\nVersion 2.0\n")
        return path

    return folder


def need(form: str) -> None:
    for package in FORMATS[form].packages:
        pytest.importorskip(package)
    if backends.get(FORMATS[form].engine).version() is None:
        pytest.skip(f"{FORMATS[form].engine} is not installed")


def job(source: Path, out: Path, to: str, weights: Stored = "fp32", **changes: Any) -> Job:
    need(to)
    return Job(source, out, (to,), WeightForm(weights), **{"min_agreement": LEAST[weights], **changes})


QUICK = (  # every family, format and form once or more; each family in each format is quick in the exporters' own tests
    *(("llama", "onnx", "fp32"), ("qwen2", "onnx", "int4"), ("gemma3_text", "gguf", "int8")),
    *(("qwen3", "openvino", "int8"), ("phi3", "gguf", "int4"), ("mistral", "openvino", "fp32")),
)
CELLS = [
    pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow)
    for cell in ((family, form, weights) for form in FORMATS for family in families_of(form) for weights in FORMS)
]


@pytest.mark.parametrize(("family", "form", "weights"), CELLS)
def test_every_family_in_every_format(
    family: str, form: str, weights: Stored, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    report = run(job(folders(family), tmp_path / "out", form, weights))
    (one,) = report.formats
    assert one.ok and report.folder == tmp_path / "out"
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.unverified == () and manifest.reports[form]["kl"] == one.parity.kl
    if weights == "fp32":
        assert one.parity.top1 > 0.98 and one.parity.relative_difference is not None
        # the other engines have caches in f16: qwen2 is 0.005 away with one, and 2e-6 with one in f32
        assert one.parity.relative_difference < (1e-4 if form == "onnx" else 1e-2)
    again = pilotfish.verify(tmp_path / "out")
    assert again.ok and not again.with_source
    assert again.formats[0].parity.top1 == pytest.approx(one.parity.top1, abs=0.02)


@pytest.fixture(scope="module")
def bundle(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama as ONNX in f32."""
    out = tmp_path_factory.getbasetemp() / "llama-bundle"
    if not out.exists():
        run(job(folders("llama"), out, "onnx"))
    return out


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_a_bundle_says_what_it_is(bundle: Path, folders: Callable[[str], Path]) -> None:
    manifest = open_bundle(bundle).manifest
    assert sorted(manifest.files) == [
        *("LICENSE", "onnx/model.onnx", "onnx/model.onnx.data", "onnx/observing.onnx"),
        *("source_answers.npz", "tokenizer.json"),
    ]
    assert (manifest.architecture, manifest.source.format, manifest.license_file) == ("llama", "huggingface", "LICENSE")
    assert manifest.license == "apache-2.0" and manifest.chat_template and manifest.add_bos
    assert manifest.canary and manifest.greedy and len(manifest.greedy.ids) == len(manifest.greedy.gaps) == 16
    assert manifest.recipe_of("onnx")["weights"].startswith("fp32")
    assert set(manifest.thresholds["onnx"]) <= {*manifest.reports["onnx"], "perplexity_ratio"}
    assert not [p for p in bundle.parent.iterdir() if p.suffix == ".tmp"]


def test_a_bundle_runs_and_gives_the_sources_own_tokens(bundle: Path, folders: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    manifest = open_bundle(bundle).manifest
    assert manifest.canary and manifest.greedy
    source = AutoModelForCausalLM.from_pretrained(folders("llama"))
    ids = torch.tensor([manifest.canary.tokens])
    with torch.no_grad():
        wanted = source.generate(ids, do_sample=False, max_new_tokens=16, min_new_tokens=16, eos_token_id=None)
    assert wanted[0, ids.shape[1] :].tolist() == list(manifest.greedy.ids)
    weights = backends.get("onnx").open(open_model(bundle), device=None, threads=1, kv_dtype=None)
    session = weights.session(128)
    found = verifying.read_answer(session, np.array(manifest.canary.tokens), np.array(manifest.greedy.ids))
    assert found.tolist() == list(manifest.greedy.ids)
    weights.close()
    with pilotfish.load(bundle) as model:
        assert model.generate("the pilot fish", max_new_tokens=5).stats.n_tokens > 0


def test_verify_with_the_source_again(bundle: Path, folders: Callable[[str], Path]) -> None:
    report = pilotfish.verify(bundle, folders("llama"))
    assert report.ok and report.with_source and report.formats[0].parity.max_difference is not None
    with pytest.raises(ModelFileError, match="was made from another model"):
        pilotfish.verify(bundle, folders("qwen2"))
    for formats, said in (("gguf",), "holds no gguf"), (("nothing",), "holds no nothing"):
        with pytest.raises(OptionError, match=said):
            pilotfish.verify(bundle, formats=formats)


def test_a_bundle_whose_weights_are_not_its_sources_is_refused(copied: Path) -> None:
    """Weights of another seed under digests of their own: sound as a file, wrong as an export."""
    path = copied / "onnx" / "model.onnx.data"
    data = np.fromfile(path, np.float32)
    data[len(data) // 2 :] *= 1.5
    data.tofile(path)
    manifest = json.loads((copied / "pilotfish.json").read_text())
    manifest["files"]["onnx/model.onnx.data"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copied / "pilotfish.json").write_text(json.dumps(manifest))
    report = pilotfish.verify(copied)
    assert not report.ok and any("KL divergence" in p for p in report.formats[0].problems)


@pytest.mark.parametrize("weights", quick(["fp32", "int8", "int4"], "int4"))
def test_a_subtly_wrong_exporter_is_refused(
    weights: Stored, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where rounding to four bits would hide it from fixed thresholds."""
    monkeypatch.setitem(FORMATS, "onnx", Spoiled())  # type: ignore[arg-type]
    with pytest.raises(ParityError, match="too far from its source") as caught:
        run(job(folders("llama"), tmp_path / "out", "onnx", weights, min_agreement=0.0))
    assert isinstance(caught.value, RefusedExportError) and not caught.value.report.ok
    assert list(tmp_path.iterdir()) == []


def test_a_lower_agreement_is_written_down(folders: Callable[[str], Path], tmp_path: Path) -> None:
    run(job(folders("llama"), tmp_path / "out", "onnx", "int8", min_agreement=0.5))
    assert open_bundle(tmp_path / "out").manifest.thresholds["onnx"]["agreement"] == 0.5
    assert pilotfish.verify(tmp_path / "out").formats[0].thresholds.agreement == 0.5


def test_a_format_is_added_and_the_others_stay(copied: Path, folders: Callable[[str], Path]) -> None:
    before = open_bundle(copied).manifest
    run(job(folders("llama"), copied, "gguf"))
    after = open_bundle(copied).manifest
    assert list(after.formats) == ["onnx", "gguf"] and set(after.reports) == set(after.thresholds) == {"onnx", "gguf"}
    assert after.reports["onnx"] == before.reports["onnx"] and after.recipe_of("onnx") == before.recipe_of("onnx")
    for name in ("onnx/model.onnx", "onnx/model.onnx.data"):
        assert after.files[name] == before.files[name]
    assert pilotfish.verify(copied).ok


@pytest.mark.slow
def test_a_format_is_replaced_and_the_others_stay(copied: Path, folders: Callable[[str], Path]) -> None:
    run(job(folders("llama"), copied, "gguf"))
    before = open_bundle(copied).manifest
    run(job(folders("llama"), copied, "onnx", "int8"))
    after = open_bundle(copied).manifest
    assert list(after.formats) == ["gguf", "onnx"] and after.recipe_of("onnx")["weights"].startswith("int8")
    assert after.files["gguf/model.gguf"] == before.files["gguf/model.gguf"]
    assert after.recipe_of("gguf") == before.recipe_of("gguf")


def test_a_source_that_answers_no_numbers_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = Path(shutil.copytree(folders("llama"), tmp_path / "damaged"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = np.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFileError, match="not finite numbers"):
        run(job(source, tmp_path / "out", "onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_another_models_bundle_is_replaced_only_by_force(copied: Path, folders: Callable[[str], Path]) -> None:
    with pytest.raises(OptionError, match=r"bundle of another model.*--force"):
        run(job(folders("qwen2"), copied, "onnx"))
    assert open_bundle(copied).manifest.architecture == "llama"
    run(job(folders("qwen2"), copied, "onnx", force=True))
    assert open_bundle(copied).manifest.architecture == "qwen2"


def test_a_draft_is_exported_with_its_target(folders: Callable[[str], Path], tmp_path: Path) -> None:
    run(job(folders("llama"), tmp_path / "out", "onnx", draft=folders("qwen2")))
    bundle = open_bundle(tmp_path / "out")
    entry = bundle.manifest.draft
    assert entry and (entry.path, entry.pairing, entry.token_map) == ("draft", "identical", None)
    assert entry.pays is None and entry.note and "256 tokens of context are too few" in entry.note
    assert "draft/onnx/model.onnx" in bundle.manifest.files
    assert open_bundle(tmp_path / "out" / "draft").manifest.architecture == "qwen2"
    with pilotfish.load(tmp_path / "out") as model:
        drafted = model.generate("the pilot fish", max_new_tokens=12).token_ids
    with pilotfish.load(tmp_path / "out", draft=None, speculate=False) as model:
        assert model.generate("the pilot fish", max_new_tokens=12).token_ids == drafted


@pytest.mark.slow
def test_what_a_draft_brings_is_measured(tmp_path: Path) -> None:
    for family in ("llama", "qwen2"):
        (tmp_path / family).mkdir()
        save_tiny(family, tmp_path / family, max_position_embeddings=4096)
    run(job(tmp_path / "llama", tmp_path / "out", "onnx", draft=tmp_path / "qwen2"))
    entry = open_bundle(tmp_path / "out").manifest.draft
    assert entry and entry.pays is not None and entry.note
    assert set(entry.acceptance) == set(entry.speed_up) == {"chat", "code", "copy"}


def never(*_: object, **__: object) -> None:
    raise AssertionError("the long work began")


@pytest.fixture
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.Steps, "write", never)


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"to": ()}, OptionError, "no format"),
        ({"to": ("onnx", "tflite")}, OptionError, "no format 'tflite'.*onnx, openvino, gguf"),
        ({"min_agreement": 1.5}, OptionError, "between 0 and 1"),
        ({"form": None}, OptionError, r"\.gguf files"),
        ({"calibration": Path("text.txt")}, OptionError, "--data-aware methods"),
        ({"to": ("openvino",), "form": WeightForm("int8"), "data_aware": ("awq",)}, OptionError, "for int4 layers"),
        ({"to": ("openvino",), "form": WeightForm("int8"), "ratio": 0.5}, OptionError, "--ratio is for int4 layers"),
        ({"to": ("openvino",), "form": WeightForm(block=128)}, OptionError, "do not divide the 64 columns"),
        ({"form": WeightForm("fp32", block=64)}, OptionError, "--block is about int8 and int4"),
        ({"form": WeightForm("fp16", symmetric=True)}, OptionError, "--symmetric is about int8 and int4"),
        (
            {"to": ("gguf",), "form": WeightForm(symmetric=True), "gguf_kind": "Q6_K"},
            OptionError,
            "no symmetric kind",
        ),
    ],
)
def test_what_is_refused_before_the_long_work(
    changes: dict[str, Any], error: type[Exception], said: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    for form in changes.get("to", ("onnx",)):
        if form in FORMATS:
            need(form)
    with pytest.raises(error, match=said):
        run(Job(**{"source": folders("llama"), "out": tmp_path / "out", "to": ("onnx",), **changes}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize(
    ("family", "form", "changes", "said"),
    [
        ("gemma2", "openvino", {}, r"does not cap attention\. Leave openvino out"),
        ("ministral3", "openvino", {}, "optimum-intel cannot trace it"),
        ("gemma2", "gguf", {"attn_logit_softcapping": None}, "llama.cpp's gemma2 takes 50.0"),
        ("gemma2", "gguf", {"layer_types": ["full_attention"] * 3}, "no layer has a window"),
    ],
)
def test_a_format_that_computes_otherwise_is_refused_before_the_long_work(
    family: str, form: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    need(form)
    (tmp_path / "model").mkdir()
    save_tiny(family, tmp_path / "model", **changes)
    with pytest.raises(UnsupportedModelError, match=said):
        run(Job(tmp_path / "model", tmp_path / "out", (form,)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize(
    ("to", "changes", "flag"),
    [
        ("gguf", {"activations": "f32"}, "--activations is for the formats onnx, openvino, ort,"),
        ("gguf", {"data_aware": ("awq",)}, "--data-aware is for the formats onnx, openvino,"),
        ("onnx", {"data_aware": ("awq",)}, "--data-aware awq is for openvino, and of the methods onnx has gptq"),
        ("onnx", {"ratio": 0.5}, "--ratio"),
        ("onnx", {"gguf_kind": "Q8_0"}, "--gguf-kind"),
        ("gguf", {"form": WeightForm(block=64)}, "--block"),
        ("onnx", {"context": 128}, "--context is for the formats pte, coreml,"),
        ("ort", {"min_agreement": 0.5}, "--min-agreement"),
        ("ort", {"draft": "x"}, "--draft"),
        ("pte", {"form": WeightForm(embedding="fp16")}, "--embeddings"),
        ("pte", {"form": WeightForm(output="fp16")}, "--head"),
        ("pte", {"form": WeightForm(symmetric=True)}, "--symmetric"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    to: str, changes: dict[str, Any], flag: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    if to in FORMATS:
        need(to)
    with pytest.raises(OptionError, match=flag):
        run(Job(folders("llama"), tmp_path / "out", (to,), **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_long_work")
def test_places_that_cannot_be_written_are_refused_early(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    for out, said in (("photos", "is not a bundle"), ("photos/1.jpg", "is a file")):
        with pytest.raises(OptionError, match=said):
            run(job(folders("llama"), tmp_path / out, "onnx"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(CacheWriteError, match=r"needs about .* GB"):
        run(job(folders("llama"), tmp_path / "deep" / "out", "onnx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


@pytest.mark.usefixtures("no_long_work")
def test_missing_packages_are_named_with_the_command_that_adds_them(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    find = preparing.importlib.util.find_spec
    monkeypatch.setattr(
        preparing.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(EngineMissingError, match=r"onnxscript.*" + re.escape(install_command("export"))):
        run(job(folders("llama"), tmp_path / "out", "onnx"))
    monkeypatch.undo()
    monkeypatch.setattr(type(backends.get("onnx")), "version", lambda self: None)
    with pytest.raises(EngineMissingError, match=r"checked on the onnx engine.*" + re.escape(install_command("onnx"))):
        run(Job(folders("llama"), tmp_path / "out", ("onnx",)))


def test_a_ggufs_own_quantization_is_kept(tmp_path: Path) -> None:
    for form in ("onnx", "gguf"):
        need(form)
    file = tiny_gguf(tmp_path / "tiny.gguf", seed=10)
    report = run(Job(file, tmp_path / "out", ("onnx", "gguf"), None))
    assert report.ok and len(report.formats) == 2
    assert (tmp_path / "out" / "gguf" / "model.gguf").read_bytes() == file.read_bytes()
    assert open_bundle(tmp_path / "out").manifest.source.format == "gguf"
    assert pilotfish.verify(tmp_path / "out").ok
    need("openvino")
    with pytest.raises(UnsupportedModelError, match="opens the file itself"):
        run(Job(file, tmp_path / "other", ("openvino",), None))


def test_weights_that_are_taken_over_are_no_excuse_for_the_loss_of_rounding(tmp_path: Path) -> None:
    need("onnx")
    file = tiny_gguf(tmp_path / "tiny.gguf", quant="Q4_0", seed=10)
    kept, rounded = (
        run(Job(file, tmp_path / name, ("onnx",), WeightForm("int4", "int4", "int4", block), min_agreement=0.0))
        for name, block in (("kept", 32), ("rounded", 16))
    )
    assert kept.rounding is None and rounded.rounding is not None
    assert kept.formats[0].thresholds == Thresholds.for_weights(None, "int8", min_agreement=0.0)
    assert "int4 rounding alone: kl" in open_bundle(tmp_path / "rounded").manifest.report
    assert not open_bundle(tmp_path / "kept").manifest.report


def test_the_command_line_says_the_same(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    need("onnx")

    def pilotfish_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pilotfish", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return int(str(code)), out, " ".join(err.split())

    export = ("export", folders("llama"), "-o", tmp_path / "out", "--weights", "fp32")
    code, out, err = pilotfish_command(*export, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["ok"] and facts["with_source"] and facts["formats"]["onnx"]["top1"] > 0.98
    assert "verifying onnx:" in err
    code, out, _ = pilotfish_command("verify", tmp_path / "out")
    assert code == 0 and "ok" in out and "REFUSED" not in out
    _, out, _ = pilotfish_command("inspect", tmp_path / "out")
    assert "onnx/model.onnx" in out and "allowed" in out
    manifest = json.loads((tmp_path / "out" / "pilotfish.json").read_text())
    manifest["thresholds"]["onnx"]["perplexity_ratio"] = 0.5
    (tmp_path / "out" / "pilotfish.json").write_text(json.dumps(manifest))
    code, out, _ = pilotfish_command("verify", tmp_path / "out")
    assert code == 1 and "onnx REFUSED: perplexity" in out and "at most 0.5" in out
    for wrong, said in (
        (("--weights", "int5"), "--weights is 'int5'"),
        (("--weights", "source", "--head", "int8"), "keeps every matrix"),
        (("--data-aware", "magic"), "--data-aware is 'magic'"),
        (("--to", "tflite"), "no format 'tflite'"),
    ):
        code, _, err = pilotfish_command("export", folders("llama"), "-o", tmp_path / "other", *wrong)
        assert code == 2 and said in err, err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from pilotfish.exporting.job import Job
from pilotfish.exporters.quantize.weight_form import Stored, WeightForm
from pilotfish.exporting.export import run
def tell(what, share):
    print(what, flush=True)
    if what == sys.argv[3] and share > 0:
        os.kill(os.getpid(), signal.SIGKILL)
run(Job(Path(sys.argv[1]), Path(sys.argv[2]), ("onnx", "gguf", "ort"), WeightForm("fp32")), tell)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
@pytest.mark.parametrize(
    "moment",
    [
        *("reading the source", "asking the source", "writing onnx", "writing gguf"),
        *("verifying onnx", "verifying gguf", "writing ort"),
    ],
)
def test_kill_at_any_moment(moment: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    for form in ("onnx", "gguf"):
        need(form)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def export(stop_at: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(folders("llama")),
            str(out),
            stop_at,
            str(Path(__file__).parents[1] / "helpers"),
        ]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    killed = export(moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1
    done = export("never")
    assert done.returncode == 0, done.stderr
    steps = done.stdout.splitlines()
    finished = moment.startswith("verifying") or moment == "writing ort"
    assert ("writing onnx" in steps) != finished  # what was whole is taken over
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    manifest = open_bundle(out).manifest
    assert manifest.unverified == () and set(manifest.reports) == {"onnx", "gguf", "ort"}
    assert not (out / ".export.json").exists()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("stored", "agreement", "kl"), [("int8", 0.98, 0.01), ("int4", 0.9, 0.02)])
def test_smollm2_in_every_format(stored: Stored, agreement: float, kl: float, tmp_path: Path) -> None:
    for form in FORMATS:
        need(form)
    report = run(Job(smollm2(), tmp_path / "out", tuple(FORMATS), WeightForm(stored)))
    assert {one.form for one in report.formats} == {*FORMATS}
    for one in report.formats:
        assert one.ok and one.parity.top1 > 0.95 and one.parity.agreement > agreement and one.parity.kl < kl, one
        assert one.parity.perplexity < 1.02 * one.parity.perplexity_source
    assert pilotfish.verify(tmp_path / "out").ok


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_fitted_to_a_text_is_nearer_to_its_source(tmp_path: Path) -> None:
    need("onnx")
    form = WeightForm("int4", embedding="fp32", output="fp32")  # another grid than that of the file's own blocks
    plain, fitted = (
        run(Job(smollm2(), tmp_path / name, ("onnx",), form, activations="f32", data_aware=methods, min_agreement=0.0))
        for name, methods in (("plain", ()), ("fitted", ("gptq",)))
    )
    before, after = plain.formats[0].parity, fitted.formats[0].parity
    assert after.kl < 0.6 * before.kl and after.top1 > before.top1 and after.perplexity < before.perplexity
