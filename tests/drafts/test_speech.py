"""A table of what a model says: made, kept for every later load, and never able to change an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import pilotfish
from pilotfish.apps.cli import app
from pilotfish.drafts import speech
from pilotfish.drafts.speech import learn_speech
from pilotfish.loading.speech import kept_speech, speech_path
from pilotfish.runtime.errors import CacheWriteError, EngineError, ModelFileError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.ngram_table import NGramTable
from pilotfish.testing.tiny_models import tiny_gguf

PLACE = ("reference", 1)  # engine and threads: nothing to measure, nothing to convert


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    return tiny_gguf(tmp_path / "tiny.gguf", seed=3)


def learned(path: Path, n_tokens: int, **more: bool) -> speech.Speech:
    return learn_speech(path, n_tokens=n_tokens, engine=PLACE[0], threads=PLACE[1], **more)


def test_what_is_learned_is_drafted_by_every_later_load_and_changes_no_answer(tiny: Path) -> None:
    def answer() -> pilotfish.Result:
        with pilotfish.load(tiny, PLACE[0], threads=PLACE[1], speculate=Fixed(3)) as model:
            return model.generate("abc", max_new_tokens=12, temperature=0.7, seed=1)

    before = answer()
    seen: list[float] = []
    made = learn_speech(
        tiny, n_tokens=60, engine="reference", threads=1, progress=lambda what, share: seen.append(share)
    )
    assert made.n_tokens >= 60 and not made.ended_early and Path(made.file).is_file() and seen[-1] == 1.0
    after = answer()
    assert after.token_ids == before.token_ids
    table = kept_speech(open_model(tiny), 10_000)
    assert table is not None and table.n_learned == made.n_tokens
    more = learned(tiny, 10)
    known = kept_speech(open_model(tiny), 10_000)
    assert known is not None and known.n_learned == made.n_tokens + more.n_tokens
    assert learned(tiny, 5, again=True).n_tokens == kept_speech(open_model(tiny), 10_000).n_learned  # type: ignore[union-attr]


def test_an_interrupt_keeps_what_was_learned(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model: pilotfish.Model, seed: int):  # type: ignore[no-untyped-def]
        yield (5, 6, 7)
        raise KeyboardInterrupt

    monkeypatch.setattr(speech, "_answers", interrupted)
    made = learned(tiny, 100)
    assert (made.n_tokens, made.ended_early) == (3, True)
    assert kept_speech(open_model(tiny), 10_000).guess([5, 6]) is not None  # type: ignore[union-attr]


def test_the_command(tiny: Path) -> None:
    run = CliRunner().invoke(
        app, ["draft", "speech", str(tiny), "--tokens", "8", "--engine", "reference", "--threads", "1", "--json"]
    )
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["n_tokens"] >= 8


def test_an_encoder_decoder_has_no_speech_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    monkeypatch.setattr(speech, "load", lambda *a, **k: pytest.fail("refused before it is loaded and measured"))
    with pytest.raises(OptionError, match="answers about a source"):
        learn_speech(Path(pilotfish.__file__).parents[1] / "apps/demos/correct", n_tokens=5, threads=1)


def test_files_that_are_no_table_are_left_alone(tiny: Path) -> None:
    table = NGramTable(bits=4)
    table.learn([1, 2, 3, 1, 2], 0)
    data = table.to_bytes()
    same = NGramTable.from_bytes(data, 4)
    assert same.guess([1]) == table.guess([1]) and same.n_learned == 5
    for damaged in (b"", data[:9], data[:-3], b"PFNG9\n" + data[6:], data[:6] + b"\x63" + data[7:]):
        with pytest.raises(ModelFileError, match="no table of n-grams"):
            NGramTable.from_bytes(damaged, 4)
    with pytest.raises(ModelFileError):
        NGramTable.from_bytes(data, 3)  # of a model with a larger vocabulary
    path = speech_path(open_model(tiny))
    path.parent.mkdir(parents=True)
    path.write_bytes(data[:-1])
    assert kept_speech(open_model(tiny), 10_000) is None
    with pilotfish.load(tiny, "reference", threads=1) as model:
        assert len(model.generate("abc", max_new_tokens=4).token_ids) <= 4


def test_every_bit_of_a_table_comes_back() -> None:
    rng, table = np.random.default_rng(0), NGramTable(bits=10)
    table.learn(rng.integers(0, 50, 3000).tolist(), 0)
    again = NGramTable.from_bytes(table.to_bytes(), 50)
    contexts = rng.integers(0, 50, (500, 4)).tolist()
    assert [again.guess(context) for context in contexts] == [table.guess(context) for context in contexts]


def test_a_damaged_number_of_tokens_is_a_damaged_table() -> None:
    table = NGramTable(bits=4)
    table.learn([1, 2, 3], 0)
    data = table.to_bytes()
    for at in range(len(data)):
        damaged = bytes([*data[:at], data[at] ^ 0xFF, *data[at + 1 :]])
        with pytest.raises(ModelFileError):
            NGramTable.from_bytes(damaged, 4)


def test_a_model_that_says_nothing_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pilotfish.load(tiny, PLACE[0], threads=PLACE[1]) as model:
        silent = model.generate("abc", max_new_tokens=1, stop=[])
        monkeypatch.setattr(pilotfish.Model, "generate", lambda *_, **__: replace(silent, text="", token_ids=()))
        with pytest.raises(UnsupportedModelError, match="50 times in a row nothing came"):
            next(speech._answers(model, 0))


def test_what_is_learned_is_kept_every_so_often_and_whatever_happens(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "_KEPT_EVERY", 3)
    monkeypatch.setattr(speech, "_answers", lambda model, seed: iter_failing())

    def iter_failing():  # type: ignore[no-untyped-def]
        yield (5, 6)
        assert kept_speech(open_model(tiny), 10_000) is None
        yield (6, 7)
        assert kept_speech(open_model(tiny), 10_000).n_learned == 4  # type: ignore[union-attr]
        yield (7, 8)
        raise EngineError("the device is gone")

    with pytest.raises(EngineError, match="is gone"):
        learned(tiny, 100)
    assert kept_speech(open_model(tiny), 10_000).n_learned == 6  # type: ignore[union-attr]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_learned(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    speech_path(open_model(tiny)).mkdir(parents=True)
    with pytest.raises(CacheWriteError, match="is a folder"):
        learned(tiny, 5)
