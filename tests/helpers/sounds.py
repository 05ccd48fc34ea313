"""Recordings for tests."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pilotfish.runtime.text.audio_features import RATE

SAMPLE = Path(__file__).parents[2] / "examples" / "speech" / "times.wav"


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> npt.NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def write_wav(path: Path, channels: list[npt.NDArray[np.float64]], size: int = 2, rate: int = RATE) -> Path:
    """size: bytes of a sample."""
    whole = np.round(np.stack(channels, axis=1).reshape(-1) * (2 ** (8 * size - 1) - 1)).astype("<i8")
    whole += 128 if size == 1 else 0
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(size)
        file.setframerate(rate)
        file.writeframes(whole.view(np.uint8).reshape(-1, 8)[:, :size].tobytes())
    return path
