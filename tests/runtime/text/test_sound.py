"""From a WAV file to what Whisper reads."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from sounds import SAMPLE, tone, write_wav

from pilotfish.runtime.errors import ModelFileError, OptionError
from pilotfish.runtime.interfaces import EncoderInfo
from pilotfish.runtime.text.audio_features import RATE, log_mel, read_wav
from pilotfish.runtime.text.prompts import task_of
from pilotfish.testing.toy_model import byte_tokenizer

WHISPER = EncoderInfo(decoder_start=(1,), source_limit=3000, source_kind="audio", bins=80)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_samples_of_every_width(tmp_path: Path, size: int) -> None:
    found = read_wav(write_wav(tmp_path / "a.wav", [tone(440), -tone(440) / 2], size))
    assert found.dtype == np.float32 and np.abs(found - tone(440) / 4).max() < 1.1 / 2 ** (8 * size - 1) + 1e-7


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_other_rates_are_brought_to_one(tmp_path: Path, rate: int) -> None:
    found = read_wav(write_wav(tmp_path / "a.wav", [tone(400, 1.0, rate)], rate=rate))
    assert found.shape == (RATE,)
    assert np.abs(found - tone(400, 1.0))[200:-200].max() < 2e-3  # the ends see each other's samples


def test_what_is_too_high_to_be_heard_is_gone(tmp_path: Path) -> None:
    mixed = tone(400, rate=48000) + tone(12000, rate=48000)
    found = read_wav(write_wav(tmp_path / "a.wav", [mixed / 2], rate=48000))
    assert np.abs(found - tone(400) / 2)[200:-200].max() < 2e-3


def test_a_file_of_another_kind_is_refused_with_the_way_out(tmp_path: Path) -> None:
    floats = write_wav(tmp_path / "float.wav", [tone(440)], size=4)
    data = bytearray(floats.read_bytes())
    data[20:22] = struct.pack("<H", 3)  # samples are floats
    floats.write_bytes(data)
    (tmp_path / "a.mp3").write_bytes(b"ID3" + bytes(99))
    (tmp_path / "empty.wav").write_bytes(b"")
    for name in ("float.wav", "a.mp3", "empty.wav"):
        with pytest.raises(OptionError, match=r"no WAV file of whole numbers.*ffmpeg -i"):
            read_wav(tmp_path / name)
    with pytest.raises(OptionError, match="there is no sound file"):
        read_wav(tmp_path / "none.wav")


def test_a_file_that_was_cut_keeps_what_is_there(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "a.wav", [tone(440), tone(440)])
    whole.write_bytes(whole.read_bytes()[:-1001])
    assert len(read_wav(whole)) == RATE // 2 - 251


@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_those_of_transformers(bins: int) -> None:
    """In f32 theirs, in f64 ours: what is left is their rounding."""
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=bins)
    encoder = EncoderInfo(decoder_start=(1,), source_limit=3000, source_kind="audio", bins=bins)
    rng = np.random.default_rng(0)
    sounds = {
        "speech": read_wav(SAMPLE),
        "noise": rng.normal(0, 0.1, 30 * RATE).astype(np.float32),
        "click": np.ones(7, np.float32),
        "to the end": rng.normal(0, 0.1, 30 * RATE - 1).astype(np.float32),
        "silence": np.zeros(100, np.float32),
        "long": rng.normal(0, 0.1, 70 * RATE + 123).astype(np.float32),
    }
    for name, sound in sounds.items():
        whole = {"truncation": False, "padding": "longest"} if len(sound) > 30 * RATE else {}
        theirs = extractor(sound, sampling_rate=RATE, return_tensors="np", **whole).input_features[0]
        ours = log_mel(sound, encoder)
        assert ours.shape == (bins, max(3000, len(sound) // 160)) and ours.dtype == np.float32
        assert np.abs(ours - theirs).max() < 1e-4, name


def test_a_prompt_of_samples_becomes_features() -> None:
    sound = read_wav(SAMPLE)
    asked = [task_of(prompt, False, byte_tokenizer(), None, WHISPER) for prompt in (sound, log_mel(sound, WHISPER))]
    for task in asked:
        assert task.source is not None and task.source.shape == (80, 3000) and task.context.tolist() == [1]
    assert np.array_equal(asked[0].source, asked[1].source)  # type: ignore[arg-type]


def test_what_is_no_sound_for_a_model_is_refused() -> None:
    for sound in (np.zeros(0, np.float32), np.zeros((2, 5, 3), np.float32), np.arange(9), np.array([0.0, np.nan])):
        with pytest.raises(OptionError, match="floats from -1 to 1"):
            log_mel(sound, WHISPER)
    with pytest.raises(ModelFileError, match="how many features"):
        log_mel(np.zeros(9, np.float32), EncoderInfo(decoder_start=(1,), source_kind="audio"))
    with pytest.raises(OptionError, match="this model takes sound, an array as of read_wav"):
        task_of("times.wav", False, byte_tokenizer(), None, WHISPER)
