"""Rotary embeddings as GGUF files describe them: plain, stretched evenly (linear), by frequency (factors, YaRN)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, UnsupportedModelError
from .decoder_file import DecoderFile
from .gguf_numbers import Numbers

FACTORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
TRUNCATED = "rope.scaling.yarn_truncated"  # of folders alone: GGUF has no word for it, and its readers truncate
_BASE = 10000.0
_AT_ONCE = 4096  # positions whose angles are computed in f64 at once
_STILL = 1e20  # factors of frequencies that shall not turn at all: files have 1e30


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """A rotary embedding; what lies behind the last frequency's pair of a head is left as it is."""

    inverse_frequencies: npt.NDArray[np.float64]  # (rotated / 2,)
    amplitude: float = 1.0  # what cosines and sines are multiplied by

    @property
    def rotated(self) -> int:
        """How many numbers of a head turn."""
        return 2 * len(self.inverse_frequencies)

    def tables(self, n_positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """cos and sin, each (n_positions, rotated / 2)."""
        cos, sin = np.empty((2, n_positions, self.rotated // 2), dtype=np.float32)
        for start in range(0, n_positions, _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, n_positions))
            cos[part], sin[part] = self.at(np.arange(part.start, part.stop))
        return cos, sin

    def at(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """cos and sin of these positions, each (n, rotated / 2)."""
        angles = np.outer(positions, self.inverse_frequencies)
        cos, sin = self.amplitude * np.cos(angles), self.amplitude * np.sin(angles)
        return cos.astype(np.float32), sin.astype(np.float32)


def plain_rotation(base: float, rotated: int) -> Rotation:
    """Frequencies of Su et al. 2021."""
    return Rotation(base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated))


def read_rotation(numbers: Numbers, head_dim: int, scalings: frozenset[str]) -> Rotation:
    """The rotary embedding of layers that see everything.

    scalings: of "linear", "factors", "yarn" and "longrope" those that the architecture knows. Raises
    UnsupportedModelError for another one.
    """
    file = numbers.file
    rotated = numbers.get("rope.dimension_count", head_dim)
    if rotated % 2 or rotated > head_dim:
        raise ModelFileError(f"{file.path}: {rotated} of {head_dim} numbers of a head cannot be rotated in pairs.")
    base = numbers.get("rope.freq_base", _BASE)
    if base <= 1:
        raise ModelFileError(f"{file.path}: rope.freq_base is {base}, but must be more than 1.")
    plain = plain_rotation(base, rotated)
    factor = numbers.get("rope.scaling.factor", numbers.get("rope.scale_linear", 1.0))
    silent = "linear" if "linear" in scalings or factor != 1.0 else "none"
    kind = numbers.word("rope.scaling.type", silent)  # as llama.cpp takes a factor without a type
    if kind not in ("none", *scalings):
        raise UnsupportedModelError(
            f"{file.path} scales its rotary embedding by {kind!r}, which is not built yet for {file.architecture}."
        )
    amplitude = numbers.get("rope.scaling.attn_factor", 1.0)
    trained = numbers.get("rope.scaling.original_context_length", numbers.need("context_length", int))
    frequencies = plain.inverse_frequencies
    if kind == "linear":
        frequencies = frequencies / factor
    elif kind == "yarn":
        frequencies, stretch = _yarn(numbers, base, frequencies, factor, trained)
        amplitude *= stretch
    if FACTORS in file.tensors and "factors" in scalings:
        factors = _factors(numbers, FACTORS, len(frequencies))
        frequencies = np.where(factors < _STILL, frequencies / factors, 0.0)
    if SHORT in file.tensors and "longrope" in scalings:
        _factors(numbers, LONG, len(frequencies))
        frequencies = frequencies / _factors(numbers, SHORT, len(frequencies))
    return Rotation(frequencies, amplitude)


def exact_range(file: DecoderFile) -> bool:
    """Whether its YaRN is one that GGUF files cannot say."""
    return file.metadata.get(f"{file.architecture}.{TRUNCATED}") is False


def known_length(numbers: Numbers) -> int:
    """How many positions one rotation is right for.

    Longer contexts of files with short and long factors turn every entry by the long ones, also those in the cache.
    """
    length = numbers.need("context_length", int)
    if SHORT not in numbers.file.tensors:
        return length
    return min(length, numbers.get("rope.scaling.original_context_length", length))


def _yarn(
    numbers: Numbers, base: float, frequencies: npt.NDArray[np.float64], factor: float, trained: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Frequencies and amplitude of YaRN (Peng et al. 2023): slow ones are stretched, fast ones are not.

    trained: positions that the model was trained on before it was stretched.
    """
    n = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        pair = n * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(base))
        return min(max(pair, 0.0), n - 1.0)

    low = pair_that_turns(numbers.get("rope.scaling.yarn_beta_fast", 32.0))
    high = pair_that_turns(numbers.get("rope.scaling.yarn_beta_slow", 1.0))
    if numbers.flag(TRUNCATED, True):
        low, high = math.floor(low), math.ceil(high)
    stretched = np.clip((np.arange(n // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    amplitude = _amplitude(factor, 1.0)
    weight = numbers.optional("rope.scaling.yarn_log_multiplier", float)
    if weight is not None:
        amplitude /= _amplitude(factor, weight)
    stated = numbers.get("rope.scaling.yarn_attn_factor", amplitude)
    if not math.isclose(stated, amplitude, rel_tol=1e-3) or numbers.get("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise UnsupportedModelError(
            f"{numbers.file.path} has a YaRN of its own (rope.scaling.yarn_attn_factor or yarn_ext_factor), which is "
            "not built yet."
        )
    return frequencies * (1 - stretched) + frequencies / factor * stretched, amplitude


def _amplitude(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _factors(numbers: Numbers, name: str, n: int) -> npt.NDArray[np.float64]:
    file = numbers.file
    if name not in file.tensors:
        raise ModelFileError(f"{file.path} has no tensor {name}.")
    values = file.tensors[name].values().reshape(-1).astype(np.float64)
    if len(values) != n:
        raise ModelFileError(f"{file.path}: {name} has {len(values)} factors, not {n}.")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ModelFileError(f"{file.path}: {name} holds factors that are not positive numbers.")
    return values
