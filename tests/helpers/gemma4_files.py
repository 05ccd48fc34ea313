"""What tiny models of Gemma 4 are made of, whose layers differ, and the layers of all families in a .gguf file."""

from __future__ import annotations

from typing import Any

from pilotfish.runtime.files.decoder_families import FAMILIES
from pilotfish.runtime.files.decoder_family import Family

_NEAR, _FULL = "sliding_attention", "full_attention"
_GEMMA4: dict[str, Any] = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        _FULL: {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.25},
        _NEAR: {"rope_type": "default", "rope_theta": 10000.0},
    },
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 272,
}
_GEMMA4_KEYS: dict[str, Any] = {
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "attention.sliding_window": 8,
    "attention.shared_kv_layers": 0,
    "embedding_length_per_layer_input": 0,
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": 16,
    "rope.freq_base": 1e5,
    "rope.freq_base_swa": 1e4,
    "final_logit_softcapping": 3.0,
}
PROPORTIONAL = {"rope_freqs.weight": [1.0] * 4 + [1e30] * 12}
SMALL: dict[str, Any] = {
    **_GEMMA4,
    "num_hidden_layers": 5,
    "layer_types": [_NEAR, _NEAR, _FULL, _NEAR, _FULL],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 32,
}
SMALL_KEYS: dict[str, Any] = {
    **_GEMMA4_KEYS,
    "attention.sliding_window_pattern": [True, True, False, True, False],
    "attention.shared_kv_layers": 2,
    "feed_forward_length": [128, 128, 128, 256, 256],
    "embedding_length_per_layer_input": 32,
}
LARGE: dict[str, Any] = {
    **_GEMMA4,
    "layer_types": [_NEAR, _FULL, _FULL],
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
LARGE_KEYS: dict[str, Any] = {
    **_GEMMA4_KEYS,
    "attention.sliding_window_pattern": [True, False, False],
    "attention.head_count_kv": [2, 1, 1],
}
Shapes = tuple[dict[str, tuple[int, int]], dict[str, int]]


def usual_layer(family: Family, chosen: dict[str, Any], kv_heads: int) -> Shapes:
    """The matrices and norms of a layer in a file."""
    hidden, ffn, head_dim = chosen["hidden_size"], chosen["intermediate_size"], chosen["head_dim"]
    queries, keys = chosen["num_attention_heads"] * head_dim, kv_heads * head_dim
    matrices = {"attn_output": (hidden, queries), "ffn_down": (hidden, ffn)}
    if family.packed:
        matrices |= {"attn_qkv": (queries + 2 * keys, hidden), "ffn_up": (2 * ffn, hidden)}
    else:
        matrices |= {"attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
        matrices |= {"ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden)}
    norms = {"attn_norm": hidden, family.mlp_norm: hidden} if family.norms_before else {}
    norms |= {"post_attention_norm": hidden, "post_ffw_norm": hidden} if family.norms_after else {}
    if family.query_key_norm is not None:
        per_head = family.query_key_norm == "head"
        norms |= {"attn_q_norm": head_dim if per_head else queries, "attn_k_norm": head_dim if per_head else keys}
    return matrices, norms


def gemma4_layer(chosen: dict[str, Any], i: int, kv_heads: int) -> Shapes:
    """The same of a family whose layers differ."""
    full, ffn = chosen["layer_types"][i] == _FULL, chosen["intermediate_size"]
    shares = i >= chosen["num_hidden_layers"] - chosen.get("num_kv_shared_layers", 0)
    alike = full and chosen.get("attention_k_eq_v")
    sizes = {"head_dim": chosen["global_head_dim"]} if full else {}
    sizes["intermediate_size"] = ffn * (2 if shares and chosen.get("use_double_wide_mlp") else 1)
    heads = chosen["num_global_key_value_heads"] if alike else kv_heads
    matrices, norms = usual_layer(FAMILIES["gemma4"], {**chosen, **sizes}, heads)
    norms["layer_output_scale"] = 1
    for name in ("attn_k", "attn_v") if shares else ("attn_v",) if alike else ():
        del matrices[name]
    if shares:
        del norms["attn_k_norm"]
    if size := chosen.get("hidden_size_per_layer_input"):
        matrices |= {"inp_gate": (size, chosen["hidden_size"]), "proj": (chosen["hidden_size"], size)}
        norms["post_norm"] = chosen["hidden_size"]
    return matrices, norms
