"""A GGUF file's metadata as the entries of a config.json.

Source: llama.cpp, src/models/*.cpp, for what each architecture assumes where the file is silent.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.folder_rope import llama3_factors
from ...runtime.files.gguf_file import GgufFile

N = TypeVar("N", int, float)

_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text", "phi3": "phi3"}
_REFUSED = {  # metadata (without prefix) that changes the computation in ways not built yet
    "expert_count": "mixtures of experts",
    "logit_scale": "scaled logits",
    "residual_scale": "scaled residuals",
    "embedding_scale": "scaled embeddings",
    "attention.scale": "a scale of attention of its own",
    "final_logit_softcapping": "capped logits",
    "attn_logit_softcapping": "capped attention",
    "attention.clamp_kqv": "clamped attention",
    "pooling_type": "pooled embeddings",
    "nextn_predict_layers": "layers that predict several tokens",
}
_WINDOW_PERIOD = 6  # of Gemma 3: every sixth layer sees everything
_WINDOW_ROPE_BASE = 10000.0
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192  # that the first Llama 3 was trained with


def settings_of(file: GgufFile) -> dict[str, Any]:
    """What config.json would say about this file.

    Raises UnsupportedModelError for what cannot be expressed, naming it, and ModelFileError for what is missing.
    """
    arch = file.architecture
    if arch not in _FAMILIES:
        raise UnsupportedModelError(
            f"{file.path} holds a model of the architecture {arch!r}: not yet, because its computation is not checked "
            f"here. Architectures that are: {', '.join(_FAMILIES)}."
        )
    for key, what in _REFUSED.items():
        if file.metadata.get(f"{arch}.{key}"):
            raise UnsupportedModelError(f"{file.path} uses {what} ({arch}.{key}): not yet exported.")
    read = _Reader(file)
    if "token_embd.weight" not in file.tensors:
        raise ModelFileError(f"{file.path} has no tensor token_embd.weight.")
    hidden, n_heads = read.need("embedding_length", int), read.need("attention.head_count", int)
    head_dim = read.get("attention.key_length", hidden // n_heads)
    settings: dict[str, Any] = {
        "model_type": _FAMILIES[arch],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": read.need("feed_forward_length", int),
        "num_hidden_layers": read.need("block_count", int),
        "num_attention_heads": n_heads,
        "num_key_value_heads": read.get("attention.head_count_kv", n_heads),
        "max_position_embeddings": read.need("context_length", int),
        "rms_norm_eps": read.need("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, read, head_dim),
        "pad_token_id": None,  # else transformers' defaults, which this vocabulary may not have
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    if settings["num_hidden_layers"] > len(file.tensors):
        raise ModelFileError(
            f"{file.path} claims {settings['num_hidden_layers']} layers, but holds {len(file.tensors)} tensors."
        )
    if read.get("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{file.path} has values and keys of different lengths: not yet exported.")
    return settings | _family(file, read, settings, head_dim)


def _family(file: GgufFile, read: _Reader, settings: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """The entries that not every family has."""
    kind = settings["model_type"]
    if kind == "llama":
        return {"head_dim": head_dim, "attention_bias": "blk.0.attn_q.bias" in file.tensors}
    if kind == "qwen3":
        return {"head_dim": head_dim}
    if kind == "gemma3_text":
        return _gemma3(read, settings, head_dim)
    if head_dim * settings["num_attention_heads"] != settings["hidden_size"]:
        raise UnsupportedModelError(
            f"{file.path}: heads of {head_dim} numbers do not fill the {settings['hidden_size']} of a {kind}."
        )
    if kind == "phi3":  # llama.cpp reads its window and does not apply it; in transformers it would be applied
        window = read.get("attention.sliding_window", settings["max_position_embeddings"])
        rotated = read.get("rope.dimension_count", head_dim)
        return {
            "sliding_window": window if window < settings["max_position_embeddings"] else None,
            "partial_rotary_factor": rotated / head_dim,
        }
    return {}


def _gemma3(read: _Reader, settings: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Windows and the second rotary embedding of Gemma 3."""
    layers, full = settings["num_hidden_layers"], settings["rope_parameters"]
    local = {"rope_type": "default", "rope_theta": read.get("rope.freq_base_swa", _WINDOW_ROPE_BASE)}
    window = read.file.metadata.get("gemma3.attention.sliding_window")
    pattern = read.file.metadata.get("gemma3.attention.sliding_window_pattern", _WINDOW_PERIOD)
    if isinstance(pattern, list):
        sliding = [bool(x) for x in pattern]
    else:
        sliding = [(i + 1) % int(pattern) != 0 for i in range(layers)]  # type: ignore[call-overload]
    if len(sliding) != layers:
        raise ModelFileError(
            f"{read.file.path}: sliding_window_pattern has {len(sliding)} entries for {layers} layers."
        )
    if not window:
        sliding = [False] * layers
    # llama.cpp takes the 27B model, and it alone, by its number of layers; see its models/gemma3.cpp
    by_hidden = layers == 62
    return {
        "head_dim": head_dim,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "layer_types": ["sliding_attention" if x else "full_attention" for x in sliding],
        "sliding_window": read.need("attention.sliding_window", int) if window else settings["max_position_embeddings"],
        "query_pre_attn_scalar": settings["hidden_size"] // settings["num_attention_heads"] if by_hidden else head_dim,
    }


def _rope(file: GgufFile, read: _Reader, head_dim: int) -> dict[str, Any]:
    theta = read.get("rope.freq_base", 10000.0)
    rotated = read.get("rope.dimension_count", head_dim)
    if rotated != head_dim and file.architecture != "phi3":
        raise UnsupportedModelError(
            f"{file.path} rotates {rotated} of {head_dim} dimensions of a head: not yet exported."
        )
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in file.tensors:
            raise UnsupportedModelError(
                f"{file.path} has the tensor {name}: not yet, because its rotary embedding depends on the length."
            )
    kind = file.metadata.get(f"{file.architecture}.rope.scaling.type", "linear")  # as llama.cpp takes a bare factor
    if kind not in ("linear", "none"):
        raise UnsupportedModelError(f"{file.path} scales its rotary embedding by {kind!r}: not yet exported.")
    factor = read.get("rope.scaling.factor", read.get("rope.scale_linear", 1.0)) if kind == "linear" else 1.0
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:
        if factor != 1.0:
            raise UnsupportedModelError(
                f"{file.path} scales its rotary embedding in two ways at once: not yet exported."
            )
        trained = read.get("rope.scaling.original_context_length", _LLAMA3_CONTEXT)
        return {"rope_theta": theta, **_llama3(file, factors.values().reshape(-1), theta, head_dim, trained)}
    if factor == 1.0:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _llama3(
    file: GgufFile, factors: npt.NDArray[np.float32], theta: float, head_dim: int, trained: int
) -> dict[str, Any]:
    """Llama 3's scaling, of which the file keeps the result only: found again and compared."""
    found = {"rope_type": "llama3", "factor": float(factors.max()), "original_max_position_embeddings": trained}
    found |= _LLAMA3
    if factors.shape != (head_dim // 2,) or not np.allclose(
        llama3_factors(found, theta, head_dim), factors, rtol=1e-3, atol=0
    ):
        raise UnsupportedModelError(
            f"{file.path}: rope_freqs.weight is not what Llama 3.1 and its successors have: not yet exported."
        )
    return found


class _Reader:
    """Numbers from the metadata, checked."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file

    def need(self, key: str, kind: type[N]) -> N:
        name = f"{self.file.architecture}.{key}"
        value = self.file.metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise ModelFileError(f"{self.file.path}: {name} is {value!r}, but must be a positive number.")
        if kind is int and value != int(value):
            raise ModelFileError(f"{self.file.path}: {name} is {value!r}, but must be a whole number.")
        return kind(value)

    def get(self, key: str, default: N) -> N:
        if f"{self.file.architecture}.{key}" not in self.file.metadata:
            return default
        return self.need(key, type(default))
