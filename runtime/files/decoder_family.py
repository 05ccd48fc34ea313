"""What the architectures of decoders that are read here may consist of.

Source: llama.cpp, src/models/*.cpp, also for what each assumes where a file is silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["silu", "gelu", "clamped"]
"""Of the gate. "gelu" is the form with tanh; "clamped" is gate * sigmoid(CLAMPED_SLOPE * gate) times up + 1, where
neither is more than CLAMP and up not less than -CLAMP (gpt-oss)."""
CLAMP, CLAMPED_SLOPE = 7.0, 1.702


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


LINEAR = frozenset({"linear"})


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
    scalings: frozenset[str] = LINEAR  # of the rotary embedding
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
