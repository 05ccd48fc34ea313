"""Rotary embeddings as config.json describes them, put into the metadata and factors of GGUF files.

Source: transformers, modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from .decoder_family import Family
from .folder_settings import Settings
from .rotation import FACTORS, LONG, SHORT, TRUNCATED

Factors = dict[str, npt.NDArray[np.float32]]

_SCALING = {
    **{"default": None, "linear": "linear", "llama3": "factors", "yarn": "yarn", "longrope": "longrope"},
    "proportional": "factors",
}
_STILL = 1e30  # as llama.cpp's converter writes it: what is divided by it does not turn
_OLD_NAMES = {"phi3": {"su": "longrope", "yarn": "longrope"}}  # as its first releases called it
_PARTLY = ("phi3",)  # families of which transformers turns a part of each head


def rope_metadata(s: Settings, family: Family, head_dim: int, context: int) -> tuple[dict[str, object], Factors]:
    """Metadata without the architecture's name, and tensors of factors.

    Raises ModelFileError for what is no number where one must be, and UnsupportedModelError for what is not built.
    """
    full, near = _ropes(s)
    kind = _kind(s, full)
    scaling = _SCALING[kind]
    if scaling not in (None, *family.scalings):
        raise s.not_built(f"its rotary embedding is scaled by {kind!r} (rope_type)")
    theta = _number(s, full, "rope_theta", s.get("rope_theta"))
    partial = _number(s, full, "partial_rotary_factor", s.get("partial_rotary_factor") or 1.0)
    if family.windows is not None and family.windows.own_heads and kind != "proportional":
        raise s.not_built(f"the rotary embedding of its longer heads is of the kind {kind!r} (rope_type)")
    if kind == "proportional":
        rotated = head_dim
    elif partial != 1.0 and s.kind not in _PARTLY:
        raise s.not_built(f"it rotates {partial:g} of each head (partial_rotary_factor)")
    else:
        rotated = int(head_dim * partial)
    found: dict[str, object] = {"rope.freq_base": theta, "rope.dimension_count": rotated, "rope.scaling.type": "none"}
    factors: Factors = {}
    original = s.get("original_max_position_embeddings") or full.get("original_max_position_embeddings") or context
    length = int(_number(s, {"original_max_position_embeddings": original}, "original_max_position_embeddings"))
    if scaling == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": _number(s, full, "factor")}
    elif kind == "proportional":
        factors[FACTORS] = proportional_factors(_number(s, full, "factor", 1.0), partial, head_dim)
    elif scaling == "factors":
        found["rope.scaling.original_context_length"] = length
        numbers = {name: _number(s, full, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        factors[FACTORS] = llama3_factors({**numbers, "original_max_position_embeddings": length}, theta, rotated)
    elif scaling == "yarn":
        found |= _yarn(s, full, length, context)
    elif scaling == "longrope":
        found |= _longrope(s, full, length, context)
        factors |= {SHORT: _listed(s, full, "short_factor"), LONG: _listed(s, full, "long_factor")}
    if family.windows is not None and family.windows.base is not None:
        if _kind(s, near) != "default":
            raise s.not_built("the rotary embedding of its layers with a window is scaled")
        found["rope.freq_base_swa"] = _number(s, near, "rope_theta", s.get("rope_local_base_freq"))
    if "attention.temperature_scale" in family.scalars:
        found["attention.temperature_scale"] = full.get("llama_4_scaling_beta") or 0.0
    return found, factors


def llama3_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> npt.NDArray[np.float32]:
    """What each rotary frequency is divided by, (head_dim / 2,)."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    trained = rope["original_max_position_embeddings"]
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((trained / wavelengths - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / (smooth + (1.0 - smooth) / factor), dtype=np.float32)


def proportional_factors(factor: float, partial: float, head_dim: int) -> npt.NDArray[np.float32]:
    """What each rotary frequency of a whole head is divided by where a part of its pairs turns, (head_dim / 2,)."""
    found = np.full(head_dim // 2, _STILL, dtype=np.float32)
    found[: int(partial * head_dim // 2)] = factor
    return found


def _ropes(s: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What describes the layers that see everything, and those with a window, where they have one of their own."""
    said: Mapping[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = s.get(name)
        if value is not None and not isinstance(value, dict):
            raise s.wrong(name, "an object")
        said = said or value or {}
    full, near = said.get("full_attention"), said.get("sliding_attention")
    return (full if isinstance(full, dict) else said), (near if isinstance(near, dict) else {})


def _kind(s: Settings, rope: Mapping[str, Any]) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = _OLD_NAMES.get(s.kind, {}).get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _SCALING:
        raise s.not_built(
            f"its rotary embedding is scaled by {kind!r} (rope_type), and known are {', '.join(_SCALING)}"
        )
    return kind


def _yarn(s: Settings, rope: Mapping[str, Any], length: int, context: int) -> dict[str, object]:
    factor = _number(s, rope, "factor", context / length)
    stretch, all_dim = _stretch(factor, 1.0), rope.get("mscale_all_dim")
    wanted = stretch
    if rope.get("attention_factor") is not None:
        wanted = _number(s, rope, "attention_factor")
    elif rope.get("mscale") and all_dim:
        wanted = _stretch(factor, _number(s, rope, "mscale")) / _stretch(factor, _number(s, rope, "mscale_all_dim"))
    return {
        **({TRUNCATED: False} if rope.get("truncate") is False else {}),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": length,
        "rope.scaling.attn_factor": wanted / stretch,  # readers of GGUF stretch by themselves
        "rope.scaling.yarn_beta_fast": _number(s, rope, "beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": _number(s, rope, "beta_slow", 1.0),
    }


def _stretch(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(s: Settings, rope: Mapping[str, Any], length: int, context: int) -> dict[str, object]:
    factor = _number(s, rope, "factor", context / length)
    amplitude = 1.0 if factor <= 1 or length < 2 else math.sqrt(1 + math.log(factor) / math.log(length))
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": length,
        "rope.scaling.attn_factor": _number(s, rope, "attention_factor", amplitude),
    }


def _listed(s: Settings, rope: Mapping[str, Any], name: str) -> npt.NDArray[np.float32]:
    value = rope.get(name)
    if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
        raise ModelFileError(f"{s.path / 'config.json'}: {name} is {value!r:.60}, but must be a list of numbers.")
    return np.array(value, dtype=np.float32)


def _number(s: Settings, rope: Mapping[str, Any], name: str, silent: Any = None) -> float:
    """A positive number. Raises ModelFileError."""
    value = silent if rope.get(name) is None else rope[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise ModelFileError(f"{s.path / 'config.json'}: {name} is {value!r:.60}, but must be a positive number.")
    return float(value)
