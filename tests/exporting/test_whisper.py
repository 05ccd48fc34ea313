"""Models that listen: a recording is told as transformers' generate() tells it, with drafts and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from real_weights import whisper
from sounds import SAMPLE, tone, write_wav
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_families import VOCAB_SIZE, tiny_tokenizer
from typer.testing import CliRunner

from pilotfish import Model, load
from pilotfish.apps.cli import app
from pilotfish.backends import get
from pilotfish.exporters.open_source import open_source
from pilotfish.exporting.export import export
from pilotfish.runtime.files.manifest import MANIFEST_NAME
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.text.audio_features import log_mel, read_wav

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytestmark = pytest.mark.usefixtures("module_cache")

SUPPRESSED = {"suppress_tokens": list(range(3, VOCAB_SIZE, 3)), "begin_suppress_tokens": list(range(4, VOCAB_SIZE, 3))}
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness."


def told(model: Any, loaded: Model, path: Path, n: int) -> list[int]:
    """transformers' greedy answer, without the tokens that it begins with."""
    assert loaded.info.encoder is not None
    heard = torch.from_numpy(log_mel(read_wav(path), loaded.info.encoder))[None]
    found: list[int] = model.generate(heard, do_sample=False, num_beams=1, max_new_tokens=n)[0].tolist()
    start = list(loaded.info.encoder.decoder_start)
    return found[len(start) :] if found[: len(start)] == start else found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A random Whisper that must leave out most tokens, its bundle, and a recording."""
    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder
    from pilotfish.exporters.quantize.weight_form import WeightForm

    folder = tmp_path_factory.mktemp("tiny")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    model = tiny_encoder_decoder("whisper", vocab_size=VOCAB_SIZE, **SUPPRESSED)
    model.generation_config.update(**SUPPRESSED, eos_token_id=2, forced_decoder_ids=None)
    export_encoder_decoder(
        model,
        folder / "bundle",
        WeightForm("fp32"),
        model_id="tiny-whisper",
        tokenizer=folder / "tokenizer.json",
        activations="f32",
    )
    return model, folder / "bundle", write_wav(folder / "a.wav", [tone(440, 0.4) + 0.1 * tone(1200, 0.4)])


def test_a_tiny_one_says_what_transformers_says(tiny: tuple[Any, Path, Path]) -> None:
    model, bundle, recording = tiny
    sound, answers = read_wav(recording), []
    for policy in (False, Fixed(4)):
        with load(bundle, engine="onnx", threads=2, speculate=policy) as loaded:
            answers.append(list(loaded.generate(sound, max_new_tokens=24).token_ids))
            expected = told(model, loaded, recording, 24)
    assert answers == [expected, expected]
    assert not set(expected) & set(SUPPRESSED["suppress_tokens"]) and len(set(expected)) > 1
    assert expected[0] not in SUPPRESSED["begin_suppress_tokens"]
    with load(bundle, engine="onnx", threads=2, suppress=False) as free:
        assert list(free.generate(sound, max_new_tokens=24).token_ids) != expected


def test_the_command_line_listens(tiny: tuple[Any, Path, Path]) -> None:
    _, bundle, recording = tiny
    line = ["run", str(bundle), str(recording), "-n", "8", "--json", "--threads", "2"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["n_prompt"] == 120 and len(found["token_ids"]) == 8
    shown = CliRunner().invoke(app, ["inspect", str(bundle), "--json"])
    assert json.loads(shown.stdout)["suppress_tokens"] == SUPPRESSED["suppress_tokens"]
    assert "at first 4 7 10" in CliRunner().invoke(app, ["inspect", str(bundle)]).stdout
    for more, says in (
        ([str(bundle), "none.wav"], "there is no sound file"),
        ([*line[1:3], "--system", "x"], "drop --system"),
        ([*line[1:3], "--raw"], "drop --raw"),
    ):
        refused = CliRunner().invoke(app, ["run", *more, "--threads", "2"])
        assert refused.exit_code != 0 and says in str(refused.exception or refused.output)


def test_a_folder_s_settings_for_generating_reach_the_manifest(tmp_path: Path) -> None:
    from tiny_encoder_decoders import save_encoder_decoder

    source = save_encoder_decoder("whisper", tmp_path / "source")
    settings = {"decoder_start_token_id": 0, "eos_token_id": 2, **SUPPRESSED}
    (source / "generation_config.json").write_text(json.dumps(settings))
    export(source, tmp_path / "out", to=("onnx",), weights="int8")
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert {name: manifest[name] for name in SUPPRESSED} == SUPPRESSED


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_recording_is_told_as_by_the_reference(engine: str, weights: Literal["fp32", "int8"], tmp_path: Path) -> None:
    source = open_source(whisper())
    if get(engine).version() is None:
        pytest.skip(f"the {engine} engine is not installed")
    export(whisper(), tmp_path / "bundle", to=(engine,), weights=weights)
    sound, results = read_wav(SAMPLE), []
    for policy in (False, True, Fixed(5)):
        with load(tmp_path / "bundle", engine=engine, device="cpu", threads=2, speculate=policy) as loaded:
            results.append(loaded.generate(sound))
            expected = told(source.torch_model(), loaded, SAMPLE, 100)
    assert [list(result.token_ids) for result in results] == [[*expected, loaded.tokenizer.ordered_eos_ids[0]]] * 3
    assert results[0].text.strip() == TEXT
    assert results[0].stats.accepted == 0 and results[2].stats.accepted > 5
    assert results[2].stats.n_rounds < results[0].stats.n_rounds - 5
    assert np.isfinite(results[0].stats.decode_tok_s)
