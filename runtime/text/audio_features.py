"""From a recording to what a model that listens reads: a WAV file to samples, samples to Whisper's log-mel features.

Source: Radford et al. 2022, section 2.2; the filters are those of librosa (Slaney's mel scale, of equal area).
"""

from __future__ import annotations

import os
import wave
from functools import cache

import numpy as np

from ..errors import ModelFileError, OptionError
from ..interfaces import EncoderInfo, Floats, Probs

RATE = 16_000  # samples a second, of what models listen to
_WINDOW, _HOP = 400, 160  # samples of a frame, and from one to the next
_AT_ONCE = 3000  # frames transformed together: an hour of them would take gigabytes
_LINEAR_MELS, _LINEAR_HZ = 15.0, 1000.0  # up to where mels are proportional to frequency, in both
_OCTAVE = np.log(6.4) / 27.0  # logarithm of a frequency by mel, above
_WAY_OUT = "Convert it, for example with: ffmpeg -i IN -ac 1 -ar 16000 -c:a pcm_s16le OUT.wav"


def read_wav(path: str | os.PathLike[str]) -> Floats:
    """Samples of a WAV file, (n,) from -1 to 1 at 16,000 a second; channels are averaged.

    Raises OptionError for anything but whole-number PCM.
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            size, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except FileNotFoundError:
        raise OptionError(f"there is no sound file {os.fspath(path)}.") from None
    except (OSError, EOFError, wave.Error) as error:
        raise OptionError(f"{os.fspath(path)} is no WAV file of whole numbers ({error}). {_WAY_OUT}") from error
    if size not in (1, 2, 3, 4) or not rate:
        raise OptionError(f"{os.fspath(path)} has samples of {size} bytes at {rate} Hz. {_WAY_OUT}")
    data = data[: len(data) // (size * channels) * size * channels]  # a cut file may end in the middle of a sample
    wide = np.zeros((len(data) // size, 4), dtype=np.uint8)
    wide[:, 4 - size :] = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)  # in the upper bytes of 32 bits
    if size == 1:
        wide[:, 3] ^= 0x80  # samples of 8 bits have their zero at 128
    samples = wide.reshape(-1).view("<i4").reshape(-1, channels).mean(axis=1) / 2.0**31
    return resampled(samples, rate).astype(np.float32)


def resampled(samples: Probs, rate: int) -> Probs:
    """The same sound at 16,000 samples a second: its spectrum, cut or continued with nothing."""
    n = round(len(samples) * RATE / rate)
    if rate == RATE or not n:
        return samples
    spectrum = np.zeros(n // 2 + 1, dtype=np.complex128)
    found = np.fft.rfft(samples)[: len(spectrum)]
    spectrum[: len(found)] = found
    return np.asarray(np.fft.irfft(spectrum, n) * (n / len(samples)))


def log_mel(samples: Floats, encoder: EncoderInfo) -> Floats:
    """What an encoder reads of a sound, (bins, frames) float32: one window with silence behind it, or more frames of a
    sound that is longer.

    samples: (n,) from -1 to 1, 16,000 a second.
    Raises OptionError for other arrays, ModelFileError where the model does not say how much it reads.
    """
    if encoder.bins is None or encoder.source_limit is None:
        raise ModelFileError("this model does not say how many features it reads; build its bundle again.")
    if samples.ndim != 1 or samples.dtype.kind != "f" or not len(samples) or not np.isfinite(samples).all():
        raise OptionError(
            f"sound is given as floats from -1 to 1, {RATE} a second, and this is {samples.shape} of {samples.dtype}; "
            "read_wav() makes them out of a WAV file."
        )
    length = max(encoder.source_limit * _HOP, len(samples))
    padded = np.zeros(length + _WINDOW)
    padded[_WINDOW // 2 : _WINDOW // 2 + len(samples)] = samples
    padded[: _WINDOW // 2] = padded[_WINDOW : _WINDOW // 2 : -1]  # mirrored at both ends
    padded[-(_WINDOW // 2) :] = padded[-_WINDOW // 2 - 2 : -_WINDOW - 2 : -1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][: length // _HOP]
    loud = np.concatenate([_loudness(frames[i : i + _AT_ONCE], encoder.bins) for i in range(0, len(frames), _AT_ONCE)])
    return np.asarray((np.maximum(loud, loud.max() - 8.0) + 4.0).T / 4.0, dtype=np.float32)


def _loudness(frames: Probs, bins: int) -> Probs:
    """Logarithms of what is in each bin, (frames, bins)."""
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1])) ** 2
    return np.asarray(np.log10(np.maximum(power @ mel_filters(bins), 1e-10)))


def checked_features(heard: Floats, encoder: EncoderInfo) -> Floats:
    """Features of somebody's own, (bins, frames). Raises OptionError for another shape or kind."""
    if heard.ndim != 2 or heard.dtype.kind != "f" or heard.shape[0] != encoder.bins or not heard.shape[1]:
        raise OptionError(
            f"this model listens: it takes samples, (n,), or features, ({encoder.bins}, frames), and was given an "
            f"array of shape {heard.shape} of {heard.dtype}. read_wav() makes samples out of a WAV file."
        )
    return heard


@cache
def mel_filters(bins: int) -> Probs:
    """How much of each frequency belongs to each bin, (frequencies, bins)."""
    hertz = np.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    edges = _hertz(np.linspace(0.0, _mel(RATE / 2), bins + 2))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low)))


def _mel(hertz: float) -> float:
    """Mels of a frequency above the linear part."""
    return float(_LINEAR_MELS + np.log(hertz / _LINEAR_HZ) / _OCTAVE)


def _hertz(mels: Probs) -> Probs:
    linear = mels * (_LINEAR_HZ / _LINEAR_MELS)
    return np.where(mels < _LINEAR_MELS, linear, _LINEAR_HZ * np.exp(_OCTAVE * (mels - _LINEAR_MELS)))
