"""config.json of a Hugging Face folder as the metadata that a GGUF file of the same model has.

Source: transformers' configuration classes for what an entry means.
"""

from __future__ import annotations

from collections.abc import Mapping

from .decoder_family import Family, Folder
from .folder_experts import experts_metadata
from .folder_rope import Factors, rope_metadata
from .folder_settings import Settings

_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu": ("gelu_pytorch_tanh",), "clamped": ("silu",)}
_REFUSED = {  # entries that, where they are set, change the computation in ways not built yet
    "use_bidirectional_attention": "its attention looks ahead",
    "is_encoder_decoder": "it is an encoder-decoder",
    "enable_moe_block": "it is a mixture of experts",
}
_OF_PICTURES = {"use_bidirectional_attention": "vision"}  # values that change nothing where all is text
_SIZES, _MAX_LAYERS = ("num_attention_heads", "hidden_size", "num_hidden_layers"), 1000
_BARE = ("gemma3_text",)  # families whose configurations have caps that their GGUF files have no place for


def metadata_of(s: Settings) -> tuple[dict[str, object], Factors]:
    """The metadata of a GGUF file of this model, without its tokenizer, and the tensors of factors that belong to it.

    Raises ModelFileError for what is no number where one must be, and UnsupportedModelError for what is not built.
    """
    for name, why in _REFUSED.items():
        if s.get(name) and s.get(name) != _OF_PICTURES.get(name):
            raise s.not_built(f"{why} ({name})")
    _check_activation(s)
    heads, hidden, layers = (s.need(name, int) for name in _SIZES)
    if layers > _MAX_LAYERS:
        raise s.wrong("num_hidden_layers", f"at most {_MAX_LAYERS}")
    near_dim = s.optional("head_dim", int) or hidden // heads
    head_dim = s.optional("global_head_dim", int) or near_dim
    context = s.need("max_position_embeddings", int)
    found: dict[str, object] = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": s.need("intermediate_size", int),
        "attention.head_count": heads,
        "attention.head_count_kv": s.optional("num_key_value_heads", int) or heads,
        "attention.layer_norm_rms_epsilon": s.need("rms_norm_eps", float),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    found |= _windows(s, s.family, context) | experts_metadata(s)
    found |= _uneven(s, found, near_dim)
    rope, tensors = rope_metadata(s, s.family, head_dim, context)
    found |= rope | _scalars(s, s.folder)
    _check_score_scale(s, found, head_dim)
    _check_unrotated(s, s.family)
    return {"general.architecture": s.architecture, **{f"{s.architecture}.{k}": v for k, v in found.items()}}, tensors


def _uneven(s: Settings, found: Mapping[str, object], near_dim: int) -> dict[str, object]:
    """The sizes in which layers differ, and what each is given beside what the last one gave."""
    more: dict[str, object] = {}
    layers, ffn_size = s.need("num_hidden_layers", int), s.need("intermediate_size", int)
    if s.family.windows is not None and s.family.windows.own_heads:
        names = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
        more |= dict.fromkeys(names, near_dim)
    if s.family.keys_as_values and s.get("attention_k_eq_v"):
        pattern = found.get("attention.sliding_window_pattern")
        near, full = found["attention.head_count_kv"], s.optional("num_global_key_value_heads", int)
        if isinstance(pattern, list) and full is not None:
            more["attention.head_count_kv"] = [near if sliding else full for sliding in pattern]
    shared = s.optional("num_kv_shared_layers", int) if s.family.shared_caches else None
    if shared is not None:
        more["attention.shared_kv_layers"] = shared
        if s.get("use_double_wide_mlp"):
            more["feed_forward_length"] = [ffn_size * (2 if i >= layers - shared else 1) for i in range(layers)]
    if s.family.layer_inputs:
        more["embedding_length_per_layer_input"] = s.optional("hidden_size_per_layer_input", int) or 0
    return more


def _check_activation(s: Settings) -> None:
    name = "hidden_activation" if s.says("hidden_activation") else "hidden_act"
    value, built = s.get(name), _ACTIVATIONS[s.family.activation]
    if value is None or value in built:
        return
    if name == "hidden_act" and (value, s.kind) == ("gelu", "gemma"):  # which its authors meant as the one with tanh
        return
    raise s.not_built(f"its activation is {value!r} ({name}), and {built[0]} is built")


def _windows(s: Settings, family: Family, context: int) -> dict[str, object]:
    """What layers see. Families whose windows are not built hold no more than one: within it they see everything."""
    used = s.get("use_sliding_window") is not False
    window = s.optional("sliding_window", int) if used else None
    if family.windows is None:
        return {} if window is None else {"context_length": min(context, window)}
    found: dict[str, object] = {"attention.sliding_window": window or 0}
    kinds, period = s.get("layer_types"), s.optional("sliding_window_pattern", int)
    if s.folder.full_last and kinds is None and family.windows.full_every is not None:
        every, layers = family.windows.full_every, s.need("num_hidden_layers", int)
        kinds = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
    if family.windows.full_every is None or (kinds is None and period is None):
        return found
    names = {"sliding_attention": True, "full_attention": False}
    if kinds is None:
        return found | {"attention.sliding_window_pattern": period}
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in names for kind in kinds):
        raise s.wrong("layer_types", f"a list of {' and '.join(names)}")
    pattern = [names[kind] for kind in kinds]
    if s.folder.full_last:
        pattern[-1:] = [False]
    return found | {"attention.sliding_window_pattern": pattern}


def _scalars(s: Settings, folder: Folder) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, name in folder.settings.items():
        found[key] = s.optional(name, float) or 0.0
    if s.kind in _BARE and s.get("attn_logit_softcapping"):
        raise s.not_built("its attention scores are capped (attn_logit_softcapping)")
    return found


def _check_score_scale(s: Settings, found: Mapping[str, object], head_dim: int) -> None:
    """Refuse scores that are scaled otherwise than GGUF files of the family are, which do not say by what."""
    name = s.folder.score_scale
    if name is None:
        return
    wide = found["block_count"] == s.family.wide_scale_layers
    expected = s.need("hidden_size", int) // s.need("num_attention_heads", int) if wide else head_dim
    if s.need(name, float) != expected:
        raise s.not_built(f"its scores are scaled by 1/sqrt({s.get(name)}) ({name}), and 1/sqrt({expected}) is built")


def _check_unrotated(s: Settings, family: Family) -> None:
    every, layers = family.unrotated_every, s.need("num_hidden_layers", int)
    if every is None:
        return
    interval, listed = s.get("no_rope_layer_interval") or every, s.get("no_rope_layers")
    rotates = [int((i + 1) % every != 0) for i in range(layers)]
    if listed is None:
        listed = [int((i + 1) % interval != 0) for i in range(layers)] if isinstance(interval, int) else None
    if listed != rotates:
        raise s.not_built(f"its layers without positions are not every {every}th (no_rope_layers)")
