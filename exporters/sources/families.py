"""The model families that can be exported, and the reasons why a configuration cannot be, told before long work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelFileError, UnsupportedModelError
from .encoder_decoder_families import ENCODER_DECODERS

SUPPORTED = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mistral")  # model_type of transformers

_ROPE_TYPES = {"default", "linear", "llama3"}
_ACTIVATIONS = {"gemma3_text": {"gelu_pytorch_tanh"}}
_SILU = {"silu", "swish"}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_REFUSED = {  # entries that, where they are set, change the computation in ways not built yet
    "final_logit_softcapping": "its logits are capped",
    "attn_logit_softcapping": "its attention is capped",
    "use_bidirectional_attention": "its attention looks ahead",
    "quantization_config": "its weights are quantized already; give the model that it was made from",
    "auto_map": "it brings program code of its own, which is never run",
}
_MAX_LAYERS = 1000


def text_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The entries of config.json that describe the decoder: of a model with a vision tower, its text part.

    Raises UnsupportedModelError for whatever cannot be exported yet, and ModelFileError for what cannot be.
    """
    found = dict(settings)
    kind = found.get("model_type")
    if kind == "gemma3" and isinstance(found.get("text_config"), dict):
        inner = {"model_type": "gemma3_text", **found["text_config"]}
        names = ("auto_map", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id")
        found = {**{name: found[name] for name in names if name in found}, **inner}
        kind = found["model_type"]
    if not isinstance(kind, str):
        raise ModelFileError(f"{path} does not say which family it holds (model_type).")
    if kind not in SUPPORTED:
        raise UnsupportedModelError(
            f"{path} holds a model of the family {kind!r}: not yet, because its computation is not checked here. "
            f"Families that are: {', '.join((*SUPPORTED, *ENCODER_DECODERS))}."
        )
    for name, why in _REFUSED.items():
        if found.get(name):
            raise _not_yet(path, kind, f"{why} ({name})")
    _check_sizes(found, path)
    activation = found.get("hidden_activation" if kind == "gemma3_text" else "hidden_act")
    if activation is not None and activation not in _ACTIVATIONS.get(kind, _SILU):
        raise _not_yet(path, kind, f"its activation is {activation!r}")
    _check_rope(found, kind, path)
    return found


def _not_yet(path: Path, kind: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path} holds a {kind} that cannot be exported: not yet, because {why}.")


def _check_sizes(settings: Mapping[str, Any], path: Path) -> None:
    for name in _SIZES:
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 30):
            raise ModelFileError(f"{path}: {name} is {value!r}, but must be a positive whole number.")
    layers = settings.get("num_hidden_layers")
    if layers is not None and layers > _MAX_LAYERS:
        raise ModelFileError(f"{path}: num_hidden_layers is {layers}; no model has more than {_MAX_LAYERS}.")


def _check_rope(settings: Mapping[str, Any], kind: str, path: Path) -> None:
    for rope in _ropes(settings, path):
        name = rope.get("rope_type", rope.get("type", "default"))
        if name not in _ROPE_TYPES:
            raise _not_yet(
                path, kind, f"its rotary embedding is scaled by {name!r}; known are {', '.join(sorted(_ROPE_TYPES))}"
            )


def _ropes(settings: Mapping[str, Any], path: Path) -> Iterator[Mapping[str, Any]]:
    """Each description of a rotary embedding; Gemma has one for each kind of layer."""
    for key in ("rope_scaling", "rope_parameters"):
        value = settings.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ModelFileError(f"{path}: {key} is {value!r:.60}, but must be an object.")
        inner = [part for part in value.values() if isinstance(part, dict)]
        yield from inner or [value]
