"""A configuration of transformers as GGUF metadata: the way back from settings.py.

Source: the specification of GGUF, and llama.cpp's src/models/*.cpp for what it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.decoder_family import Family, Windows
from ...runtime.files.folder_rope import llama3_factors
from ..sources.families import SCALARS, SUPPORTED, window_of
from ..sources.model_source import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SCALINGS = {"linear": "linear", "llama3": "factors", "yarn": "yarn"}  # of transformers: of decoder_families.py
_TEMPERATURE = "attention.temperature_scale"


def metadata_of(source: ModelSource, config: PretrainedConfig) -> dict[str, object]:
    """A decoder's own metadata. Raises UnsupportedModelError for what llama.cpp would compute otherwise."""
    family = SUPPORTED[config.model_type].family
    arch = SUPPORTED[config.model_type].architecture
    head_dim = head_dim_of(config)
    rope = full_rope(config)
    found: dict[str, object] = {
        "context_length": _context_length(config, family),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * float(rope.get("partial_rotary_factor") or 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    found |= _scaling(rope, arch, family) | _scalars(config, arch, family)
    if family.unrotated_every is not None:
        wanted = [int((i + 1) % family.unrotated_every != 0) for i in range(config.num_hidden_layers)]
        if list(config.no_rope_layers) != wanted:
            raise UnsupportedModelError(
                f"other layers do without a rotary embedding than every {family.unrotated_every}th, which llama.cpp's "
                f"{arch} takes."
            )
    if family.windows is not None and family.windows.full_every is not None:
        found |= _windows(config, family.windows)
    return {f"{arch}.{key}": value for key, value in found.items()}


def _scaling(rope: dict[str, Any], arch: str, family: Family) -> dict[str, object]:
    """What stretches the rotary embedding."""
    kind = rope["rope_type"]
    if kind != "default" and _SCALINGS.get(kind) not in family.scalings:
        raise UnsupportedModelError(
            f"a rotary embedding scaled by {kind!r} cannot be written: llama.cpp's {arch} has none."
        )
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind == "llama3":  # what it does is in a tensor; this is for reading it back
        return {"rope.scaling.original_context_length": int(rope["original_max_position_embeddings"])}
    return _yarn(rope) if kind == "yarn" else {}


def _yarn(rope: dict[str, Any]) -> dict[str, object]:
    own = rope.get("attention_factor") is not None or rope.get("truncate", True) is not True
    weight = rope.get("mscale_all_dim") if rope.get("mscale") else None
    if own or not rope.get("factor") or (weight and rope["mscale"] != 1.0):
        raise UnsupportedModelError(
            "a rotary embedding scaled by a YaRN of its own (attention_factor, truncate, mscale) is not written as "
            "GGUF yet."
        )
    found: dict[str, object] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
        "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1.0),
    }
    return found | ({"rope.scaling.yarn_log_multiplier": float(weight)} if weight else {})


def _scalars(config: PretrainedConfig, arch: str, family: Family) -> dict[str, object]:
    """The constants that the architecture has a place for."""
    found: dict[str, object] = {}
    for key, name in SCALARS.items():
        value = getattr(config, name, None)
        if key not in family.scalars:
            continue
        if value is not None:
            found[key] = float(value)
        elif family.scalars[key] is not None:
            raise UnsupportedModelError(f"{name} is not set here; llama.cpp's {arch} takes {family.scalars[key]}.")
    if _TEMPERATURE in family.scalars:
        found[_TEMPERATURE] = float(full_rope(config).get("llama_4_scaling_beta") or 0.0)
    scalar, head_dim = getattr(config, "query_pre_attn_scalar", None), head_dim_of(config)
    wide = config.num_hidden_layers == family.wide_scale_layers
    scale = config.hidden_size // config.num_attention_heads if wide else head_dim
    if scalar not in (None, scale):
        raise UnsupportedModelError(f"attention is scaled by 1/sqrt({scalar}) here; llama.cpp takes 1/sqrt({scale}).")
    return found


def rope_divisors(config: PretrainedConfig) -> npt.NDArray[np.float32] | None:
    """What each rotary frequency is divided by, where a model has such factors; GGUF keeps them as a tensor."""
    rope = full_rope(config)
    if rope["rope_type"] != "llama3":
        return None
    return llama3_factors(rope, float(rope["rope_theta"]), head_dim_of(config))


def full_rope(config: PretrainedConfig) -> dict[str, Any]:
    """Parameters of the rotary embedding; where there are two, that of the layers which see everything."""
    rope: dict[str, Any] = config.rope_parameters
    inner = rope.get("full_attention")
    return dict(inner if isinstance(inner, dict) else rope)


def head_dim_of(config: PretrainedConfig) -> int:
    """Numbers in a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _context_length(config: PretrainedConfig, family: Family) -> int:
    """The longest text for which llama.cpp computes the same: only of some families does it apply the windows."""
    window, limit = window_of(config), int(config.max_position_embeddings)
    applied = family.windows is not None and family.windows.full_every is not None
    return limit if applied or window is None else min(limit, window)


def _windows(config: PretrainedConfig, windows: Windows) -> dict[str, object]:
    """Which layers have a window, and their rotary embedding where it is one of their own."""
    assert windows.full_every is not None
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    if not any(sliding):
        if windows.size is None:
            return {}
        raise UnsupportedModelError("no layer has a window here, and llama.cpp does not run this family without one.")
    found: dict[str, object] = {"attention.sliding_window": int(config.sliding_window)}
    if windows.base is not None:
        local = config.rope_parameters["sliding_attention"]
        if local["rope_type"] != "default":
            raise UnsupportedModelError(
                "a scaled rotary embedding of the layers with a window is not written as GGUF yet."
            )
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    if sliding != [(i + 1) % windows.full_every != 0 for i in range(len(sliding))]:  # what readers take otherwise
        found["attention.sliding_window_pattern"] = sliding
    return found
