"""The architectures whose files are read here, one entry each: what their layers are made of, and what files may say.

Source: llama.cpp, src/models/*.cpp, also for what each assumes where a file is silent; transformers for phi3's window,
which llama.cpp leaves out, and for what is said of Hugging Face folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["silu", "gelu", "clamped"]
"""Of the gate. "gelu" is the form with tanh; "clamped" is gate * sigmoid(CLAMPED_SLOPE * gate) times up + 1, where
neither is more than CLAMP and up not less than -CLAMP (gpt-oss)."""
CLAMP, CLAMPED_SLOPE = 7.0, 1.702

_QKV = ("attn_q", "attn_k", "attn_v")
_LINEAR, _YARN = frozenset({"linear"}), frozenset({"linear", "yarn"})


@dataclass(frozen=True, slots=True)
class Windows:
    """Layers that see the last so many positions only.

    full_every: every so manieth layer sees everything; None: none does.
    size: where the file is silent; None: then there is no window.
    base: of a rotary embedding of their own, never scaled, where the file is silent; None: they have the others'.
    own_heads: their heads have a length of their own.
    """

    full_every: int | None
    size: int | None = None
    base: float | None = None
    own_heads: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """How a Hugging Face folder of an architecture differs from its GGUF file.

    silent: by model_type, what transformers takes where config.json is silent; what is not in it is as in SILENT.
    norm_offset: what a GGUF file's norm weights are larger by.
    experts_size: the setting that says how wide an expert is; None: the family has none.
    settings: the names in config.json of the family's scalars, where they are entries of their own.
    score_scale: the setting that scores are scaled by the root of; GGUF files do not say it.
    full_last: the last layer sees everything, whatever is said.
    """

    silent: Mapping[str, Mapping[str, object]]
    norm_offset: float = 0.0
    experts_size: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    score_scale: str | None = None
    full_last: bool = False


@dataclass(frozen=True, slots=True)
class Mixture:
    """MLPs, the experts, of which a router picks some for each token, and adds up what they give by shares.

    whole: the shares of those that are picked make one; otherwise they are their shares of all.
    always: every model of the architecture is one; otherwise those whose files count experts.
    biased: the router and the experts have biases.
    shared: beside them there is an MLP that every token passes, weighed by a gate of its own.
    """

    whole: bool
    always: bool = True
    biased: bool = False
    shared: bool = False


SILENT: Mapping[str, object] = {
    "num_key_value_heads": None,  # as many as there are heads
    "head_dim": None,  # what hidden_size gives each head
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": None,
}
_FULL: Mapping[str, object] = {"use_sliding_window": False}


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture. The defaults are a pre-norm decoder with gated SiLU, as llama is one."""

    pairs: bool = False  # rows of q and k lie in pairs (i, i + 1) that turn together, not in halves
    packed: bool = False  # q, k and v are one tensor, gate and up another
    biases: tuple[str, ...] = ()  # tensors that may have one
    norms_before: bool = True  # of attention and MLP
    norms_after: bool = False  # of what they give
    query_key_norm: Literal["head", "row"] | None = None  # of each head, or of all heads together
    activation: Activation = "silu"
    embedding_root: bool = False  # embeddings are multiplied by the root of their width
    scalings: frozenset[str] = _LINEAR  # of the rotary embedding
    unrotated_every: int | None = None  # every so manieth layer does not rotate
    rotates_if_finetuned: bool = False  # rope.scaling.finetuned = false is no rotation at all
    windows: Windows | None = None
    mixture: Mixture | None = None
    sinks: bool = False  # each head has a score of its own that takes a share of attention and gives nothing
    mlp_norm: str = "ffn_norm"  # the tensor of the norm before the MLP
    wide_scale_layers: int | None = None  # the model of so many layers scales scores by hidden_size / n_heads
    score_scale: float | None = None  # of all its models; None: 1 / sqrt(head_dim), or what the file says
    value_norm: bool = False  # of each head, without weights
    keys_as_values: bool = False  # layers that see everything may all have their keys as values, before norm and turn
    uneven: bool = False  # layers may differ in the number of key-value heads and in the size of the MLP
    shared_caches: bool = False  # the last layers may attend to what an earlier one keeps, and keep nothing
    layer_inputs: bool = False  # there may be a second table of tokens, a part of whose rows each layer adds
    layer_scale: bool = False  # what a layer hands on is multiplied by a number of its own
    # Scalars that a file may have, with the value where it is silent; None: then there is no such thing.
    scalars: Mapping[str, float | None] = field(default_factory=dict)
    folder: Folder | None = None

    @property
    def biased(self) -> tuple[str, ...]:
        """Tensors that may have a bias, those of experts too."""
        experts = self.mixture is not None and self.mixture.biased
        return (
            (*self.biases, "ffn_gate_inp", *(f"ffn_{x}_exps" for x in ("gate", "up", "down")))
            if experts
            else self.biases
        )


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
        scalings=_LINEAR | {"longrope"},
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
        scalings=_LINEAR | {"factors"},
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
        scalings=_LINEAR | {"factors"},
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
