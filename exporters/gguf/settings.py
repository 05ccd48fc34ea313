"""A GGUF file's metadata as the entries of a config.json.

Source: llama.cpp, src/models/*.cpp, for what each architecture assumes where the file is silent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.decoder_description import DecoderShape, Temperature
from ...runtime.files.decoder_family import Windows
from ...runtime.files.decoder_file import DecoderFile
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.folder_rope import llama3_factors
from ...runtime.files.gguf_file import GgufFile
from ...runtime.files.gguf_numbers import Numbers
from ...runtime.files.rotation import FACTORS, SHORT
from ..sources.families import SCALARS, SUPPORTED

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192  # that the first Llama 3 was trained with


def settings_of(file: GgufFile) -> dict[str, Any]:
    """What config.json would say about this file.

    Raises UnsupportedModelError for what cannot be expressed, naming it, and ModelFileError for what is missing.
    """
    arch = file.architecture
    kinds = {SUPPORTED[kind].architecture: kind for kind in reversed(list(SUPPORTED))}
    if arch not in kinds:
        raise UnsupportedModelError(
            f"{file.path} holds a model of the architecture {arch!r}: not yet, because its computation is not checked "
            f"here. Architectures that are: {', '.join(dict.fromkeys(reversed(kinds)))}. "
            "The llamacpp engine may open the file itself."
        )
    shape, numbers = decoder_shape(file), Numbers(file)
    if shape.experts is not None:
        raise UnsupportedModelError(
            f"{file.path} holds a mixture of experts ({arch}.expert_count), which is not exported yet. "
            "It opens as it is: pilotfish run, or pilotfish.load."
        )
    settings: dict[str, Any] = {
        "model_type": kinds[arch],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(numbers, shape),
        "pad_token_id": None,  # else transformers' defaults, which this vocabulary may not have
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
    }
    return settings | _of_family(numbers, shape, settings)


def _of_family(numbers: Numbers, shape: DecoderShape, settings: dict[str, Any]) -> dict[str, Any]:
    """The entries that not every family has."""
    scalars = {
        "attn_logit_softcapping": shape.attention_softcap,
        "final_logit_softcapping": shape.logit_softcap,
        "logit_scale": 1.0 / shape.logit_scale,
        "residual_scale": shape.residual_scale,
        "embedding_scale": shape.embedding_scale,
        "attention.scale": shape.score_scale,
    }
    found: dict[str, Any] = {SCALARS[key]: value for key, value in scalars.items() if key in shape.family.scalars}
    rotates = [int(layer.rotation is not None) for layer in shape.layers]
    if shape.family.unrotated_every is not None:
        found["no_rope_layers"] = rotates
    elif not all(rotates):
        raise UnsupportedModelError(f"{numbers.file.path} does not rotate queries and keys: not yet exported.")
    if "blk.0.attn_q.bias" in numbers.file.tensors:
        found["attention_bias"] = True
    if shape.family.wide_scale_layers is not None:
        found["query_pre_attn_scalar"] = round(shape.score_scale**-2)
    windows = shape.family.windows
    if windows is not None and windows.full_every is not None:
        found |= _by_layer(numbers, shape, windows, settings["rope_parameters"])
    elif windows is not None:
        found["sliding_window"] = shape.window
    return found


def _by_layer(numbers: Numbers, shape: DecoderShape, windows: Windows, full: dict[str, Any]) -> dict[str, Any]:
    """Which layers have a window, and their rotary embedding where it is one of their own."""
    assert windows.full_every is not None
    size = numbers.get("attention.sliding_window", windows.size or 0)
    pattern = numbers.flags("attention.sliding_window_pattern", shape.n_layers, windows.full_every)
    kinds = ["sliding_attention" if sliding and size else "full_attention" for sliding in pattern]
    found: dict[str, Any] = {"layer_types": kinds, "sliding_window": size or shape.context_length}
    if windows.base is not None:
        local = {"rope_type": "default", "rope_theta": numbers.get("rope.freq_base_swa", windows.base)}
        found["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
    return found


def _rope(numbers: Numbers, shape: DecoderShape) -> dict[str, Any]:
    """The rotary embedding of layers that see everything, which decoder_shape() has found sound."""
    file = numbers.file
    rotated = numbers.get("rope.dimension_count", shape.head_dim)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": numbers.get("rope.freq_base", 10000.0)}
    if rotated != shape.head_dim:
        rope["partial_rotary_factor"] = rotated / shape.head_dim
    if SHORT in file.tensors:
        raise UnsupportedModelError(
            f"{file.path} has the tensor {SHORT}: not yet, because its rotary embedding depends on the length."
        )
    if "attention.temperature_scale" in shape.family.scalars:
        warmth = shape.temperature or Temperature(0.0, shape.context_length)
        rope |= {"llama_4_scaling_beta": warmth.scale, "original_max_position_embeddings": warmth.length}
    kind = numbers.word("rope.scaling.type", "linear")  # as llama.cpp takes a bare factor
    factor = numbers.get("rope.scaling.factor", numbers.get("rope.scale_linear", 1.0)) if kind != "none" else 1.0
    if factor != 1.0 and FACTORS in file.tensors:
        raise UnsupportedModelError(f"{file.path} scales its rotary embedding in two ways at once: not yet exported.")
    if FACTORS in file.tensors:
        factors = file.tensors[FACTORS].values().reshape(-1)
        trained = numbers.get("rope.scaling.original_context_length", _LLAMA3_CONTEXT)
        return rope | _llama3(file, factors, rope["rope_theta"], shape.head_dim, trained)
    if kind == "yarn":
        return rope | _yarn(numbers, factor)
    return rope | ({"rope_type": "linear", "factor": factor} if factor != 1.0 else {})


def _yarn(numbers: Numbers, factor: float) -> dict[str, Any]:
    if numbers.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise UnsupportedModelError(
            f"{numbers.file.path} scales its rotary embedding's amplitude by a factor of its own: not yet exported."
        )
    weight = numbers.optional("rope.scaling.yarn_log_multiplier", float)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": numbers.get(
            "rope.scaling.original_context_length", numbers.need("context_length", int)
        ),
        "beta_fast": numbers.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": numbers.get("rope.scaling.yarn_beta_slow", 1.0),
        **({} if weight is None else {"mscale": 1.0, "mscale_all_dim": weight}),
    }


def _llama3(
    file: DecoderFile, factors: npt.NDArray[np.float32], theta: float, head_dim: int, trained: int
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
