"""Models that listen: languages, tasks, times and long recordings, as transformers' generate() tells them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sounds import tone, write_wav
from tiny_families import VOCAB_SIZE, tiny_tokenizer
from typer.testing import CliRunner

from pilotfish import Model, load
from pilotfish.apps.cli import app
from pilotfish.exporters.sources.ctranslate2_file import _generation
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.files.bundle import read_manifest
from pilotfish.runtime.files.generation_settings import checked_settings
from pilotfish.runtime.interfaces import as_tokens
from pilotfish.runtime.model.listening import Spoken, Windows
from pilotfish.runtime.model.rules import AnswerOptions, Rules
from pilotfish.runtime.sampling.generation import Generation
from pilotfish.runtime.sampling.processors import with_times
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.text.prompts import Task
from pilotfish.testing.toy_model import byte_tokenizer, toy_model, toy_weights

END, START, SILENT = 200, 201, 209
LANGUAGES = {"en": 202, "fr": 203, "yue": 204}
TASKS = {"translate": 205, "transcribe": 206}
SAID: dict[str, Any] = {
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "forced_decoder_ids": [[1, None], [2, TASKS["transcribe"]]],
    "is_multilingual": True,
    "lang_to_id": {f"<|{name}|>": token for name, token in LANGUAGES.items()},
    "task_to_id": TASKS,
    "no_timestamps_token_id": SILENT,
    "max_initial_timestamp_index": 20,
    "suppress_tokens": [2, *range(30, END), *range(START, SILENT)],
    "begin_suppress_tokens": [END],
}
SHORT, LONG = 120, 410  # frames: one window, and three and a half


def test_times_are_ruled_as_by_transformers_processor() -> None:
    torch = pytest.importorskip("torch")
    made = pytest.importorskip("transformers").generation.logits_process.WhisperTimeStampLogitsProcessor
    from transformers import GenerationConfig

    said = GenerationConfig(no_timestamps_token_id=9, max_initial_timestamp_index=3, eos_token_id=6)
    theirs, ours = made(said, begin_index=2), with_times(10, 6, 2, 3)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(1500):
        times = np.sort(rng.integers(10, 20, 6))
        rest = np.where(rng.random(6) < 0.5, times, rng.integers(0, 6, 6))[: rng.integers(0, 7)]
        context = np.array([7, 8, *rest])
        logits = rng.normal(0, 2, 20).astype(np.float32)
        expected = theirs(torch.from_numpy(context)[None], torch.from_numpy(logits.copy())[None])[0].numpy()
        np.testing.assert_array_equal(ours(logits.copy(), context), expected)
        seen.add(tuple(np.isfinite(expected)))
    assert len(seen) > 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random Whisper of three languages in transformers, and its bundle."""
    for package in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from tiny_encoder_decoders import tiny_encoder_decoder
    from transformers import GenerationConfig

    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder
    from pilotfish.exporters.quantize.weight_form import WeightForm

    folder = tmp_path_factory.mktemp("whisper")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    model: Any = tiny_encoder_decoder("whisper", seed=1, vocab_size=VOCAB_SIZE)
    model.generation_config = GenerationConfig.from_dict({**SAID, "pad_token_id": END})
    form: Any = {"model_id": "tiny", "tokenizer": folder / "tokenizer.json", "activations": "f32"}
    export_encoder_decoder(model, folder / "b", WeightForm("fp32"), **form)
    return model, folder / "b"


@pytest.fixture(scope="module", params=[False, Fixed(3)], ids=["plain", "drafts"])
def loaded(made: tuple[Any, Path], module_cache: None, request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(made[1], engine="onnx", threads=2, speculate=request.param) as model:
        yield model


def heard(frames: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 1, (20, frames)).astype(np.float32)


def told(model: Any, sound: Any, **asked: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.generate(torch.from_numpy(sound)[None], do_sample=False, num_beams=1, max_new_tokens=30, **asked)


def words(tokens: Any) -> list[int]:
    """Without what the answer begins with and what ends it."""
    found = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
    while found and START <= found[0] <= SILENT:
        found = found[1:]
    return [token for token in found if token != END]


@pytest.mark.parametrize(
    "asked", [{}, {"language": "fr"}, {"language": "yue", "task": "translate"}, {"task": "translate"}]
)
def test_language_and_task_are_those_of_transformers(
    asked: dict[str, str], made: tuple[Any, Path], loaded: Model
) -> None:
    languages = set()
    for seed in range(2):
        sound = heard(SHORT, seed) if seed % 2 else 0.1 * heard(SHORT, seed) - 3
        result = loaded.generate(sound, max_new_tokens=30, **asked)  # type: ignore[arg-type]
        theirs = {**asked, "language": result.language} if "task" in asked else asked  # or it forgets to listen
        assert words(result.token_ids) == words(told(made[0], sound, force_unique_generate_call=True, **theirs)[0])
        detected = made[0].detect_language(made[0].model.encoder.conv1.weight.new_tensor(sound)[None])
        assert LANGUAGES[result.language or ""] == (LANGUAGES[asked["language"]] if "language" in asked else detected)
        languages.add(result.language)
    assert len(languages) > 1 or "language" in asked


@pytest.mark.parametrize("frames", [SHORT, LONG])
def test_times_are_those_of_transformers(frames: int, made: tuple[Any, Path], loaded: Model) -> None:
    n_lines = 0
    for seed in range(2):
        sound = heard(frames, seed)
        result = loaded.generate(sound, max_new_tokens=30, timestamps=True)
        decode = loaded.tokenizer.decode
        expected = [
            Spoken(
                float(part["start"]), float(part["end"]), decode(t for t in words(part["tokens"]) if t < SILENT).strip()
            )
            for part in told(made[0], sound, return_timestamps=True, return_segments=True)["segments"][0]
        ]
        expected = [one for one in expected if one.text]
        assert [one.text for one in result.spoken] == [one.text for one in expected]
        ours = [(one.start_s, one.end_s) for one in result.spoken]
        assert np.allclose(ours, [(one.start_s, one.end_s) for one in expected])
        assert result.text == "".join(f"{one}\n" for one in result.spoken)
        n_lines += len(result.spoken)
    assert n_lines > (2 if frames == SHORT else 6)


def test_windows_without_times_follow_each_other(made: tuple[Any, Path], loaded: Model) -> None:
    sound = heard(LONG)
    result = loaded.generate(sound, max_new_tokens=12)
    expected: list[int] = []
    for start in range(0, LONG, SHORT):
        part = sound[:, start : start + SHORT]
        window = np.pad(part, ((0, 0), (0, SHORT - part.shape[1])))
        one = loaded.generate(window, max_new_tokens=12, language=result.language)
        expected += one.token_ids
    assert list(result.token_ids) == expected
    assert [done.finish_reason for done in result.rounds[:-1]] == [None] * (len(result.rounds) - 1)
    assert result.finish_reason in ("stop", "length") and result.stats.n_prompt == LONG
    text = loaded.generate(sound, max_new_tokens=12, beams=2)
    assert text.stats.n_tokens > 24 and text.stats.drafted == 0


def test_a_search_tells_times_too(made: tuple[Any, Path], loaded: Model) -> None:
    assert loaded.generate(heard(SHORT), max_new_tokens=12, timestamps=True, beams=2).spoken


def test_the_bundle_says_what_can_be_asked_for(made: tuple[Any, Path]) -> None:
    found = read_manifest(made[1])
    assert found.decoder_start == (START, TASKS["transcribe"], SILENT) and found.generation.unheeded == ()
    assert found.generation.languages == LANGUAGES and found.generation.tasks == TASKS
    english = checked_settings({**SAID, "is_multilingual": False}, VOCAB_SIZE).generation
    assert english.languages == {} and english.no_timestamps_token_id == SILENT


@pytest.mark.parametrize("n_tokens", [51864, 51865])
def test_a_container_s_languages_are_heard(n_tokens: int, tmp_path: Path) -> None:
    """CTranslate2 keeps no settings that say so; the size of the vocabulary does."""
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|yue|>", "<|translate|>", "<|transcribe|>"]
    special = {name: i for i, name in enumerate([*names, "<|startoflm|>", "<|notimestamps|>"])}
    found = checked_settings(_generation(tmp_path, special, n_tokens), 9).generation
    assert found.no_timestamps_token_id == 7 and found.unheeded == ()
    assert found.languages == ({"en": 2, "yue": 3} if n_tokens == 51865 else {})
    assert found.tasks == ({"transcribe": 5, "translate": 4} if n_tokens == 51865 else {})


def test_what_cannot_be_asked_for_is_refused(loaded: Model) -> None:
    for asked, says in (
        ({"language": "xx"}, "language 'xx'; those it has are en, fr, yue"),
        ({"source_language": "fr"}, "drop source_language"),
        ({"task": "sing"}, "task 'sing'; those it has are transcribe, translate"),
        ({"timestamps": True, "stop": ["x"]}, "drop stop"),
    ):
        with pytest.raises(OptionError, match=says):
            loaded.generate(heard(SHORT), **asked)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"features, \(20, frames\)"):
        loaded.generate(heard(SHORT)[:5])
    with toy_model(toy_weights()) as text:
        for asked, says in (({"task": "translate"}, "it has none"), ({"timestamps": True}, "this one reads text")):
            with pytest.raises(OptionError, match=says):
                text.generate("a text", **asked)  # type: ignore[arg-type]


def test_what_an_answer_goes_on_from() -> None:
    many = Rules(generation=Generation(languages=LANGUAGES, tasks=TASKS, no_timestamps_token_id=SILENT))
    english = Rules(generation=Generation(no_timestamps_token_id=SILENT))
    for rules, begin, wish, expected, detects in (
        (many, [START, 206, SILENT], AnswerOptions(), [START, 202, 206, SILENT], True),
        (
            many,
            [START, 203, 206, SILENT],
            AnswerOptions(),
            [START, 203, 206, SILENT],
            False,
        ),  # the settings name a language
        (many, [START, 203, 206, SILENT], AnswerOptions("en", "translate"), [START, 202, 205, SILENT], False),
        (many, [START, SILENT], AnswerOptions("fr", None, True), [START, 203, 206], False),
        (english, [START, SILENT], AnswerOptions(), [START, SILENT], False),
        (english, [START, SILENT], AnswerOptions(timestamps=True), [START], False),
        (Rules(), [START, 206, SILENT], AnswerOptions(), [START, 206, SILENT], False),  # a bundle of before
    ):
        asked = rules.asked(Task(as_tokens(begin), heard(SHORT)), wish, True)
        assert asked.context.tolist() == expected and bool(asked.detect) is detects
        assert asked.first_time == (SILENT + 1 if wish.timestamps else None)
    with pytest.raises(OptionError, match="how it tells times"):
        Rules().asked(Task(as_tokens([START]), heard(SHORT)), AnswerOptions(timestamps=True), True)


def test_a_window_begins_where_the_last_pair_of_times_was() -> None:
    a, first = ord("a"), 260
    for tokens, step, parts in (
        ([260, a, 270, 270, a, 290, 290, a], 60, [(0.0, 0.2), (0.2, 0.6)]),  # cut: heard again from 0.6
        ([260, a, 270, 270, a, 290], 100, [(0.0, 0.2), (0.2, 0.6)]),
        ([260, a, a], 100, [(0.0, 1.0)]),
        ([260, a, 285], 100, [(0.0, 0.5)]),
        ([260, 260, a], 100, []),  # no time has passed: go on anyway
    ):
        windows = Windows(heard(250), 100, byte_tokenizer(), first)
        assert windows.move(tokens) and windows._at == step
        assert [(one.start_s, one.end_s) for one in windows.spoken] == parts
        assert windows.window.shape == (20, 100)


def test_the_command_line_tells_times(made: tuple[Any, Path], module_cache: None, tmp_path: Path) -> None:
    recording = write_wav(tmp_path / "a.wav", [tone(440, 2.6) + 0.1 * tone(1200, 2.6)])
    line = ["run", str(made[1]), str(recording), "-n", "12", "--threads", "2", "--timestamps"]
    done = CliRunner().invoke(app, [*line, "--language", "fr", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["language"] == "fr" and found["n_prompt"] == 260
    assert found["spoken"] and list(found["spoken"][0]) == ["start_s", "end_s", "text"]
    shown = CliRunner().invoke(app, line)
    assert re.match(r"\[\d\.\d\d -> \d\.\d\d\] ", shown.stdout)
    assert "those it has" in str(CliRunner().invoke(app, [*line, "--task", "sing"]).exception)
