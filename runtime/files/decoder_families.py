"""The architectures whose files are read here, one entry each: what their layers are made of, and what files may say.

Source: llama.cpp, src/models/*.cpp, also for what each assumes where a file is silent; transformers for phi3's window,
which llama.cpp leaves out, and for what is said of Hugging Face folders.
"""

from __future__ import annotations

from collections.abc import Mapping

from .decoder_family import LINEAR, Family, Folder, Mixture, Windows

_QKV = ("attn_q", "attn_k", "attn_v")
_YARN = frozenset({"linear", "yarn"})

SILENT: Mapping[str, object] = {
    "num_key_value_heads": None,  # as many as there are heads
    "head_dim": None,  # what hidden_size gives each head
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": None,
}
_FULL: Mapping[str, object] = {"use_sliding_window": False}
_CAPS: Mapping[str, object] = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_GEMMA3: Mapping[str, object] = {  # whose folders say little beside their sizes
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
_GEMMA4: Mapping[str, object] = {
    "head_dim": 256,
    "global_head_dim": 512,
    "num_key_value_heads": 4,
    "hidden_size_per_layer_input": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "rope_theta": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
_GRANITE: Mapping[str, str] = {
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
}

_PICKED: Mapping[str, object] = {"norm_topk_prob": False, "decoder_sparse_step": 1}
_GPT_OSS: Mapping[str, object] = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "sliding_window": 128,
    "num_local_experts": 128,
    "rope_parameters": {
        **{"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0},
        **{"truncate": False, "original_max_position_embeddings": 4096},
    },
    "num_experts_per_tok": 4,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        pairs=True,
        biases=(*_QKV, "attn_output"),
        scalings=_YARN | {"factors"},
        mixture=Mixture(whole=True, always=False),
        folder=Folder(
            {
                "llama": {},
                "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
                "mixtral": {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8}
                | {"num_experts_per_tok": 2},
            },
            experts_size="intermediate_size",
        ),
    ),
    "qwen2": Family(biases=_QKV, scalings=_YARN, folder=Folder({"qwen2": {"num_key_value_heads": 32, **_FULL}})),
    "qwen3": Family(
        query_key_norm="head",
        scalings=_YARN,
        folder=Folder({"qwen3": {"num_key_value_heads": 32, "head_dim": 128, **_FULL}}),
    ),
    "gemma": Family(
        activation="gelu",
        embedding_root=True,
        folder=Folder({"gemma": {"num_key_value_heads": 16, "head_dim": 256}}, norm_offset=1.0),
    ),
    "gemma2": Family(
        norms_after=True,
        activation="gelu",
        embedding_root=True,
        windows=Windows(full_every=2, size=4096),
        wide_scale_layers=46,
        scalars={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        folder=Folder(
            {
                "gemma2": {
                    "num_key_value_heads": 4,
                    "head_dim": 256,
                    "query_pre_attn_scalar": 256,
                    "sliding_window": 4096,
                    **_CAPS,
                }
            },
            norm_offset=1.0,
            settings={name: name for name in _CAPS},
            score_scale="query_pre_attn_scalar",
        ),
    ),
    "gemma3": Family(
        norms_after=True,
        query_key_norm="head",
        activation="gelu",
        embedding_root=True,
        windows=Windows(full_every=6, base=10000.0),
        wide_scale_layers=62,
        scalars={"final_logit_softcapping": None},
        folder=Folder(
            {"gemma3_text": _GEMMA3},
            norm_offset=1.0,
            settings={"final_logit_softcapping": "final_logit_softcapping"},
            score_scale="query_pre_attn_scalar",
        ),
    ),
    # Without its mixture of experts (26B-A4B).
    "gemma4": Family(
        norms_after=True,
        query_key_norm="head",
        value_norm=True,
        activation="gelu",
        embedding_root=True,
        scalings=frozenset({"factors"}),
        windows=Windows(full_every=6, base=10000.0, own_heads=True),
        score_scale=1.0,
        keys_as_values=True,
        uneven=True,
        shared_caches=True,
        layer_inputs=True,
        layer_scale=True,
        scalars={"final_logit_softcapping": None},
        folder=Folder(
            {"gemma4_text": _GEMMA4},
            settings={"final_logit_softcapping": "final_logit_softcapping"},
            full_last=True,
        ),
    ),
    "phi3": Family(
        packed=True,
        scalings=LINEAR | {"longrope"},
        windows=Windows(full_every=None),
        folder=Folder({"phi3": {"rms_norm_eps": 1e-5}}),
    ),
    "mistral3": Family(
        pairs=True,
        scalings=_YARN | {"factors"},
        scalars={"attention.temperature_scale": None},
        folder=Folder(
            {"ministral3": {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": None}}
        ),
    ),
    "granite": Family(
        pairs=True,
        scalings=LINEAR | {"factors"},
        rotates_if_finetuned=True,
        scalars=dict.fromkeys(_GRANITE),
        folder=Folder({"granite": dict.fromkeys(_GRANITE.values(), 1.0)}, settings=_GRANITE),
    ),
    "smollm3": Family(
        pairs=True,
        unrotated_every=4,
        folder=Folder({"smollm3": {"num_key_value_heads": 4, "rope_theta": 2e6, **_FULL}}),
    ),
    # Without OLMo 3, the same architecture with windows: llama.cpp and transformers rotate it differently.
    "olmo2": Family(
        norms_before=False,
        norms_after=True,
        query_key_norm="row",
        scalings=_YARN,
        folder=Folder({"olmo2": {"rms_norm_eps": 1e-5}}),
    ),
    "qwen3moe": Family(
        query_key_norm="head",
        scalings=_YARN,
        mixture=Mixture(whole=True),
        folder=Folder(
            {"qwen3_moe": {"num_key_value_heads": 4, **_PICKED, "num_experts_per_tok": 8, **_FULL}},
            experts_size="moe_intermediate_size",
        ),
    ),
    "qwen2moe": Family(
        biases=_QKV,
        scalings=_YARN,
        mixture=Mixture(whole=False, shared=True),
        folder=Folder(
            {
                "qwen2_moe": {
                    "num_key_value_heads": 16,
                    "sliding_window": 0,
                    **_PICKED,
                    "num_experts_per_tok": 4,
                    **_FULL,
                }
            },
            experts_size="moe_intermediate_size",
        ),
    ),
    "olmoe": Family(
        query_key_norm="row",
        mixture=Mixture(whole=False),
        folder=Folder(
            {"olmoe": {"rms_norm_eps": 1e-5, "norm_topk_prob": False, "num_experts_per_tok": 8}},
            experts_size="intermediate_size",
        ),
    ),
    "granitemoe": Family(
        pairs=True,
        scalings=LINEAR | {"factors"},
        rotates_if_finetuned=True,
        mixture=Mixture(whole=True),
        scalars=dict.fromkeys(_GRANITE),
        folder=Folder(
            {"granitemoe": {**dict.fromkeys(_GRANITE.values(), 1.0), "num_local_experts": 8, "num_experts_per_tok": 2}},
            experts_size="intermediate_size",
            settings=_GRANITE,
        ),
    ),
    "gpt-oss": Family(
        biases=(*_QKV, "attn_output"),
        activation="clamped",
        scalings=_YARN,
        windows=Windows(full_every=2),
        mixture=Mixture(whole=True, biased=True),
        sinks=True,
        mlp_norm="post_attention_norm",
        folder=Folder({"gpt_oss": _GPT_OSS}, experts_size="intermediate_size"),
    ),
}
