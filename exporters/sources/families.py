"""The model families that can be exported, and the reasons why a configuration cannot be, told before long work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.decoder_families import FAMILIES
from ...runtime.files.decoder_family import Activation, Family
from .encoder_decoder_families import ENCODER_DECODERS, NOT_YET


@dataclass(frozen=True, slots=True)
class Exported:
    """A family that can be exported.

    architecture: its name in .gguf files; what its layers are made of stands in runtime/files/decoder_families.py.
    norm_offset: what the weights of its norms are larger by in such a file. not_to: formats it cannot go to, and why.
    """

    architecture: str
    norm_offset: float = 0.0
    not_to: Mapping[str, str] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """What its layers are made of."""
        return FAMILIES[self.architecture]


SUPPORTED: Mapping[str, Exported] = {  # by model_type of transformers
    "llama": Exported("llama"),
    "mistral": Exported("llama"),
    "ministral3": Exported("mistral3", not_to={"openvino": "optimum-intel cannot trace it"}),
    "qwen2": Exported("qwen2"),
    "qwen3": Exported("qwen3"),
    "gemma": Exported("gemma", norm_offset=1.0),
    "gemma2": Exported("gemma2", norm_offset=1.0, not_to={"openvino": "what is traced there does not cap attention"}),
    "gemma3_text": Exported("gemma3", norm_offset=1.0),
    "phi3": Exported("phi3"),
    "granite": Exported("granite"),
    "smollm3": Exported("smollm3"),
    "olmo2": Exported("olmo2"),
}
SCALARS = {  # that an architecture may have: their names in .gguf files, and in config.json
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
}

_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
_ACTIVATIONS: Mapping[Activation, set[str]] = {"silu": {"silu", "swish"}, "gelu": {"gelu_pytorch_tanh"}}
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_REFUSED = {  # entries that, where they are set, change the computation in ways not built yet
    "use_bidirectional_attention": "its attention looks ahead",
    "quantization_config": "its weights are quantized already; give the model that it was made from",
    "auto_map": "it brings program code of its own, which is never run",
}
_TEXT_PARTS = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # model_type of what sees: of its text part, if silent
_MAX_LAYERS = 1000


def text_settings(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The entries of config.json that describe the decoder: of a model with a vision tower, its text part.

    Raises UnsupportedModelError for whatever cannot be exported yet, and ModelFileError for what cannot be.
    """
    found = dict(settings)
    kind = found.get("model_type")
    if isinstance(kind, str) and kind in _TEXT_PARTS and isinstance(found.get("text_config"), dict):
        inner = {"model_type": _TEXT_PARTS[kind], **found["text_config"]}
        names = ("auto_map", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id")
        tied = {"tie_word_embeddings": found["tie_word_embeddings"]} if "tie_word_embeddings" in found else {}
        found = {**{name: found[name] for name in names if name in found}, **inner, **tied}  # the whole model ties
        kind = found["model_type"]
    if not isinstance(kind, str):
        raise ModelFileError(f"{path} does not say which family it holds (model_type).")
    if kind not in SUPPORTED:
        raise UnsupportedModelError(
            f"{path} holds a model of the family {kind!r}: not yet, because "
            f"{NOT_YET.get(kind, 'its computation is not checked here')}. Families that can be exported: "
            f"{', '.join((*SUPPORTED, *ENCODER_DECODERS))}."
            + ("" if found.get("is_encoder_decoder") else " The llamacpp engine may open a .gguf file of it.")
        )
    if kind == "gemma" and found.get("hidden_act") == "gelu":  # in config.json since releases that did not look at it
        found["hidden_act"] = found.get("hidden_activation") or "gelu_pytorch_tanh"
    family = SUPPORTED[kind].family
    refused = _REFUSED | dict.fromkeys(_foreign_scalars(family), "it scales or caps what others of its kind do not")
    for name, why in refused.items():
        if found.get(name):
            raise _not_yet(path, kind, f"{why} ({name})")
    _check_sizes(found, path)
    for name in ("hidden_activation", "hidden_act"):
        if found.get(name) is not None and found[name] not in _ACTIVATIONS[family.activation]:
            raise _not_yet(path, kind, f"its activation is {found[name]!r}")
    _check_rope(found, kind, path)
    return found


def refuse_format(kind: str, form: str) -> None:
    """Raise UnsupportedModelError where a family (model_type) cannot go to a format."""
    why = SUPPORTED[kind].not_to.get(form)
    if why is not None:
        raise UnsupportedModelError(
            f"a {kind} cannot be exported to {form} yet, because {why}. Leave {form} out: other formats hold it."
        )


def window_of(config: Any) -> int | None:
    """How many entries back layers with a window see, their own included, by transformers' configuration of a model;
    None where all see everything."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window) if kinds is None or "sliding_attention" in kinds else None


def _foreign_scalars(family: Family) -> list[str]:
    return [name for key, name in SCALARS.items() if key not in family.scalars]


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
