"""The architectures whose files are read here, one entry each: what their layers are made of, and what files may say.

Source: llama.cpp, src/models/*.cpp, also for what each assumes where a file is silent; transformers for phi3's window,
which llama.cpp leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["silu", "gelu"]
"""Of the gate. "gelu" is the form with tanh."""

_QKV = ("attn_q", "attn_k", "attn_v")
_LINEAR, _YARN = frozenset({"linear"}), frozenset({"linear", "yarn"})


@dataclass(frozen=True, slots=True)
class Windows:
    """Layers that see the last so many positions only.

    full_every: every so manieth layer sees everything; None: none does.
    size: where the file is silent; None: then there is no window.
    base: of a rotary embedding of their own, never scaled, where the file is silent; None: they have the others'.
    """

    full_every: int | None
    size: int | None = None
    base: float | None = None


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
    wide_scale_layers: int | None = None  # the model of so many layers scales scores by hidden_size / n_heads
    # Scalars that a file may have, with the value where it is silent; None: then there is no such thing.
    scalars: Mapping[str, float | None] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(pairs=True, biases=(*_QKV, "attn_output"), scalings=_YARN | {"factors"}),
    "qwen2": Family(biases=_QKV, scalings=_YARN),
    "qwen3": Family(query_key_norm="head", scalings=_YARN),
    "gemma": Family(activation="gelu", embedding_root=True),
    "gemma2": Family(
        norms_after=True,
        activation="gelu",
        embedding_root=True,
        windows=Windows(full_every=2, size=4096),
        wide_scale_layers=46,
        scalars={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": Family(
        norms_after=True,
        query_key_norm="head",
        activation="gelu",
        embedding_root=True,
        windows=Windows(full_every=6, base=10000.0),
        wide_scale_layers=62,
        scalars={"final_logit_softcapping": None},
    ),
    "phi3": Family(packed=True, scalings=_LINEAR | {"longrope"}, windows=Windows(full_every=None)),
    "mistral3": Family(pairs=True, scalings=_YARN | {"factors"}, scalars={"attention.temperature_scale": None}),
    "granite": Family(
        pairs=True,
        scalings=_LINEAR | {"factors"},
        rotates_if_finetuned=True,
        scalars=dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "attention.scale")),
    ),
    "smollm3": Family(pairs=True, unrotated_every=4),
    # Without OLMo 3, the same architecture with windows: llama.cpp and transformers rotate it differently.
    "olmo2": Family(norms_before=False, norms_after=True, query_key_norm="row", scalings=_YARN),
}
