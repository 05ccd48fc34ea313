"""A configuration of transformers as GGUF metadata: the way back from settings.py.

Source: the specification of GGUF, and llama.cpp's src/models/*.cpp for what it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.folder_rope import llama3_factors
from ..sources.model_source import ModelSource
from .layout import LAYOUTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def metadata_of(source: ModelSource, config: PretrainedConfig) -> dict[str, object]:
    """A decoder's own metadata. Raises UnsupportedModelError for what llama.cpp would compute otherwise."""
    arch = LAYOUTS[config.model_type].architecture
    head_dim = head_dim_of(config)
    rope = full_rope(config)
    rotated = int(head_dim * float(rope.get("partial_rotary_factor") or 1.0))
    found: dict[str, object] = {
        "context_length": _context_length(config),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": rotated,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif rope["rope_type"] != "default" and (rope["rope_type"], arch) != ("llama3", "llama"):
        raise UnsupportedModelError(
            f"a rotary embedding scaled by {rope['rope_type']!r} cannot be written: llama.cpp's {arch} has none."
        )
    if rope["rope_type"] == "llama3":  # what it does is in a tensor; this is for reading it back
        found["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    if arch == "gemma3":
        found |= _gemma3(config, head_dim)
    return {f"{arch}.{key}": value for key, value in found.items()}


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


def _context_length(config: PretrainedConfig) -> int:
    """The longest text for which llama.cpp computes the same: only of Gemma does it know the windows."""
    window = getattr(config, "sliding_window", None)
    limit = int(config.max_position_embeddings)
    return limit if config.model_type == "gemma3_text" or not window else min(limit, int(window))


def _gemma3(config: PretrainedConfig, head_dim: int) -> dict[str, object]:
    layers = config.num_hidden_layers
    scale = config.hidden_size // config.num_attention_heads if layers == 62 else head_dim
    if config.query_pre_attn_scalar != scale:
        raise UnsupportedModelError(
            f"attention is scaled by 1/sqrt({config.query_pre_attn_scalar}) here; llama.cpp takes 1/sqrt({scale})."
        )
    local = config.rope_parameters["sliding_attention"]
    if local["rope_type"] != "default":
        raise UnsupportedModelError("a scaled rotary embedding of the layers with a window is not written as GGUF yet.")
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    if not any(sliding):
        return {}
    found: dict[str, object] = {
        "attention.sliding_window": int(config.sliding_window),
        "rope.freq_base_swa": float(local["rope_theta"]),
    }
    if sliding != [(i + 1) % 6 != 0 for i in range(layers)]:  # which is what readers take where nothing is said
        found["attention.sliding_window_pattern"] = sliding
    return found
