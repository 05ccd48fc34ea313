"""Encoder-decoder bundles on ONNX Runtime: the engine contract, and the whole product over a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiers import quick
from tiny_encoder_decoders import VOCAB_SIZE
from typer.testing import CliRunner

from pilotfish import Model, load
from pilotfish.apps.cli import app
from pilotfish.backends import get
from pilotfish.runtime.errors import ContextFullError, ModelFileError, OptionError
from pilotfish.runtime.files.manifest import MANIFEST_NAME
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import SourceCopy, Suffix
from pilotfish.runtime.storage import cache_dir
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.testing.toy_model import N_TOKENS, byte_tokenizer

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

pytestmark = pytest.mark.usefixtures("module_cache")

CLASSES = ((1,), (*range(2, 18), 32, 33))
NOISE = {"f32": 2e-5, "int8": 0.05, "static": 0.05}  # as of decoders, tests/contracts/test_ort.py
LIMITS = {name: {"max_position_embeddings": 512} for name in ("bart", "m2m100", "marian")}
LIMITS["whisper"] = {"max_target_positions": 512}
SAMPLES = [np.random.default_rng(seed).integers(3, VOCAB_SIZE, 48) for seed in range(8)]
KINDS = [f"{name} {how}" for name in ("t5", "flan", "umt5", "bart", "m2m100", "marian", "whisper") for how in NOISE]
KINDS.remove("whisper static")  # it hears, and the scales are of text


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    from tiny_encoder_decoders import tiny_encoder_decoder

    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder
    from pilotfish.exporters.quantize.weight_form import WeightForm

    made: dict[tuple[str, str], Path] = {}

    def bundle(name: str, activations: str) -> Path:
        if (name, activations) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{activations}") / "bundle"
            form = WeightForm("fp32" if activations == "f32" else "int8")
            model = tiny_encoder_decoder(name, **LIMITS.get(name, {}))
            kind: Any = activations
            export_encoder_decoder(model, folder, form, model_id=name, activations=kind, samples=SAMPLES)
            made[name, activations] = folder
        return made[name, activations]

    return bundle


def open_engine(path: Path) -> Weights:
    return get("onnx").open(open_model(path), device=None, threads=2, kv_dtype=None)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", quick(KINDS, "t5 f32", "marian int8"))
def test_contract(kind: str, check: Callable[[Subject], None], bundles: Callable[[str, str], Path]) -> None:
    name, activations = kind.split()
    check(Subject(partial(open_engine, bundles(name, activations)), NOISE[activations], CLASSES))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated T5 over bytes, with a tokenizer; random, but it talks."""
    from tiny_encoder_decoders import tiny_encoder_decoder

    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder

    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer().save(folder / "tokenizer.json")
    model = tiny_encoder_decoder("flan", vocab_size=N_TOKENS, eos_token_id=257, decoder_start_token_id=256)
    export_encoder_decoder(model, folder / "bundle", model_id="tiny-bytes", tokenizer=folder / "tokenizer.json")
    return folder / "bundle"


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with load(bundle, threads=2) as loaded:
        yield loaded


TEXTS = ("teh quikc brwon fox", "x", "a longer text, " * 9)


def test_a_bundle_answers_and_drafts_change_nothing(bundle: Path, model: Model) -> None:
    assert model.info.engine == "onnx" and model.info.encoder is not None
    asks = [{"temperature": 0.0}, {"temperature": 2.0, "seed": 4}]
    with load(bundle, threads=2, speculate=False) as plain:
        expected = [plain.generate(t, max_new_tokens=48, **a).token_ids for t in TEXTS for a in asks]  # type: ignore[arg-type]
    assert len(set(expected)) >= 5
    for policy in (True, Fixed(4)):
        with load(bundle, threads=2, speculate=policy, proposers=(SourceCopy(), Suffix())) as drafting:
            found = [drafting.generate(t, max_new_tokens=48, **a) for t in TEXTS for a in asks]  # type: ignore[arg-type]
            assert [r.token_ids for r in found] == expected
    assert sum(r.stats.drafted for r in found) > 50  # of Fixed(4)


def test_it_is_read_once_and_read_again_when_it_changes(model: Model) -> None:
    first = model.generate(TEXTS[0], max_new_tokens=8)
    assert model.generate(TEXTS[0], max_new_tokens=8).stats.n_reused == len(TEXTS[0]) + 1
    other = model.generate(TEXTS[2], max_new_tokens=8)
    assert other.stats.n_reused == 0 and other.token_ids != first.token_ids
    assert model.generate(TEXTS[0], max_new_tokens=8).token_ids == first.token_ids


def test_beams_answer(model: Model) -> None:
    found = {n: model.generate(TEXTS[0], max_new_tokens=12, beams=n).token_ids for n in (1, 4)}
    assert found[1] == model.generate(TEXTS[0], max_new_tokens=12).token_ids and found[4]


def test_the_command_line_runs_it(bundle: Path, model: Model) -> None:
    done = CliRunner().invoke(app, ["run", str(bundle), TEXTS[0], "-n", "12", "--json", "--threads", "2"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = model.generate(TEXTS[0], max_new_tokens=12)
    assert found["token_ids"] == list(expected.token_ids) and found["n_prompt"] == len(TEXTS[0]) + 1
    line = ["run", str(bundle), TEXTS[0], "-n", "12", "--json", "--threads", "2", "--beams", "4"]
    found = json.loads(CliRunner().invoke(app, line).stdout)
    assert found["token_ids"] == list(model.generate(TEXTS[0], max_new_tokens=12, beams=4).token_ids)
    shown = CliRunner().invoke(app, ["inspect", str(bundle)]).stdout
    assert "encoder-decoder" in shown and "encoder.onnx" in shown


def test_a_draft_of_the_other_kind_is_refused_before_it_is_opened(bundle: Path, tmp_path: Path) -> None:
    decoder = tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(OptionError, match="is a decoder, and this model is an encoder-decoder"):
        load(bundle, threads=2, draft=decoder)
    with pytest.raises(OptionError, match="is an encoder-decoder model, and this model is a decoder"):
        load(decoder, engine="onnx", device="cpu", threads=2, draft=bundle)


def test_a_long_source_names_the_limit(bundles: Callable[[str, str], Path]) -> None:
    session = open_engine(bundles("bart", "f32")).session(32)
    with pytest.raises(ContextFullError, match=r"513 tokens.*reads 512 at most"):
        session.encode(np.full(513, 5))


def test_half_a_pair_is_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    for change, says in (({"encoders": {}}, "needs an encoder"), ({"decoder_start": []}, "decoder_start")):
        folder = tmp_path / says.replace(" ", "")
        folder.mkdir()
        for name in manifest["files"]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes((bundle / name).read_bytes())
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest | change))
        with pytest.raises(ModelFileError, match=says):
            open_engine(folder)


def test_costs_are_remembered(model: Model) -> None:
    assert list((cache_dir() / "costs").glob("*.json"))


def test_the_benchmark_has_tasks_for_it(bundle: Path, tmp_path: Path) -> None:
    line = [
        "bench",
        "run",
        str(bundle),
        "--per-set",
        "1",
        "--repeats",
        "1",
        "--tokens",
        "20",
        "--threads",
        "2",
        "--json",
    ]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    sets = json.loads(done.stdout)["sets"]
    assert list(sets) == ["copied 97 %", "copied 85 %", "unrelated"]
    assert all(row["same_text"] == 1 for row in sets.values())
    assert sets["copied 97 %"]["copied"] > sets["copied 85 %"]["copied"] > sets["unrelated"]["copied"]
