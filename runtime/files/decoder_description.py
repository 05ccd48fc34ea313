"""What a decoder computes and where its weights lie: all that graphs and the reference engine are built from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .decoder_family import Family
from .rotation import Rotation

MLP = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """Sizes in which the layers of some decoders differ."""

    kv_heads: int
    head_dim: int
    ffn_size: int


@dataclass(frozen=True, slots=True, eq=False)
class LayerKind:
    """What one layer may have of its own."""

    rotation: Rotation | None  # None: positions do not matter to it
    window: int | None = None  # how many positions back it sees, a token's own included; None: all
    sizes: LayerSizes | None = None  # None: those of the whole decoder
    cache_of: int | None = None  # the earlier layer whose keys and values it attends to; None: it has its own
    keys_as_values: bool = False  # its values are its keys as they are before norm and rotation


@dataclass(frozen=True, slots=True)
class Part:
    """A projection in a GGUF file: a tensor without its ".weight", and which of its rows in which order."""

    tensor: str
    rows: npt.NDArray[np.int64] | None = None  # None: all, as they lie
    member: int | None = None  # which matrix of a tensor of several


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """How many experts a layer has, how many of them a token passes, and how wide each is inside."""

    count: int
    used: int
    size: int


@dataclass(frozen=True, slots=True)
class Temperature:
    """Queries far into a text are scaled up: 1 + scale * log(1 + position // length)."""

    scale: float
    length: int

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What the queries at these positions are multiplied by, (n,)."""
        return (1.0 + self.scale * np.log1p(positions // self.length)).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class DecoderShape:
    """Sizes, constants and make of a decoder with rotary embeddings, RMS norms, grouped queries and a gated MLP.

    Sizes of heads and MLP are those of the first layer where layers differ.
    """

    architecture: str
    n_layers: int
    hidden_size: int
    n_heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    layers: tuple[LayerKind, ...]
    family: Family = field(default_factory=Family)
    experts: ExpertSizes | None = None  # None: no mixture; then ffn_size is of the one MLP, otherwise of the shared one
    attention_scale: float | None = None  # of scores; None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # scores become cap * tanh(scores / cap)
    temperature: Temperature | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and MLP add
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    layer_input_size: int | None = None  # of what each layer adds of the second table of tokens; None: there is none

    def sizes(self, layer: int) -> LayerSizes:
        """The sizes of a layer."""
        own = self.layers[layer].sizes
        return LayerSizes(self.kv_heads, self.head_dim, self.ffn_size) if own is None else own

    @property
    def kept(self) -> list[LayerSizes]:
        """The sizes of the layers that keep keys and values, in order; the others come after these."""
        return [self.sizes(i) for i, kind in enumerate(self.layers) if kind.cache_of is None]

    @property
    def even(self) -> bool:
        """Whether each layer keeps keys and values of its own, all alike in size."""
        return len(self.kept) == self.n_layers and len({(x.kv_heads, x.head_dim) for x in self.kept}) == 1

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """The rotary embeddings, each once."""
        return tuple({id(x.rotation): x.rotation for x in self.layers if x.rotation is not None}.values())

    @property
    def window(self) -> int | None:
        """The window of those layers that have one; None where none has."""
        return next((x.window for x in self.layers if x.window is not None), None)

    def beyond_llama(self) -> str | None:
        """What this decoder does that llama does not, in words; None where it is built as llama is."""
        f, (first, *_) = self.family, self.layers
        reasons = {
            "it normalizes queries and keys": f.query_key_norm is not None,
            "it normalizes what attention and MLP give": f.norms_after,
            "its layers see windows": self.window is not None,
            "its layers differ in size, or share what they keep": not self.even or any(x.sizes for x in self.layers),
            "its layers are given more than what the last one gave": f.layer_inputs or f.layer_scale,
            "not all of its layers rotate alike": any(x.rotation is not first.rotation for x in self.layers),
            "it does not rotate whole heads": first.rotation is None or first.rotation.rotated != self.head_dim,
            "it is a mixture of experts": self.experts is not None,
            "its attention has sinks": f.sinks,
            "its activation is another": f.activation != "silu",
            "it scales or caps what others do not": (
                (self.attention_scale, self.attention_softcap, self.temperature, self.logit_softcap) != (None,) * 4
                or (self.embedding_scale, self.residual_scale, self.logit_scale) != (1.0,) * 3
            ),
        }
        return next((why for why, so in reasons.items() if so), None)

    def half_order(self, n_heads: int) -> npt.NDArray[np.int64]:
        """Row order that puts the pairs of a q or k of so many heads into halves (Hugging Face layout)."""
        rows = np.arange(n_heads * self.head_dim).reshape(n_heads, self.head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)

    def projections(self, layer: int) -> dict[str, Part]:
        """Where the query, key, value, output, gate, up and down of a layer lie, rows of q and k in halves.

        A mixture has no gate, up and down but those of its shared MLP.
        """
        at, kind, sizes = f"blk.{layer}.", self.layers[layer], self.sizes(layer)
        queries, keys = self.n_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        found = {"output": Part(f"{at}attn_output")}
        if self.family.packed:
            found |= _slices(f"{at}attn_qkv", {"query": queries, "key": keys, "value": keys})
            found |= {"down": Part(f"{at}ffn_down")}
            return found | _slices(f"{at}ffn_up", {"gate": sizes.ffn_size, "up": sizes.ffn_size})
        pairs = self.family.pairs
        found["query"] = Part(f"{at}attn_q", self.half_order(self.n_heads) if pairs else None)
        if kind.cache_of is None:
            found["key"] = Part(f"{at}attn_k", self.half_order(self.kv_heads) if pairs else None)
            if not kind.keys_as_values:
                found["value"] = Part(f"{at}attn_v")
        if self.layer_input_size is not None:
            found |= {"input_gate": Part(f"{at}inp_gate"), "input_projection": Part(f"{at}proj")}
        return found | {name: Part(f"{at}ffn_{name}{self.mlp_suffix}") for name in MLP if self.mlp_suffix is not None}

    @property
    def mlp_suffix(self) -> str | None:
        """What the names of the tensors of the MLP that every token passes end with; None where there is none."""
        if self.experts is None:
            return ""
        return "_shexp" if self.family.mixture is not None and self.family.mixture.shared else None

    def expert(self, layer: int, i: int) -> dict[str, Part]:
        """Where the gate, up and down of one expert lie."""
        return {name: Part(f"blk.{layer}.ffn_{name}_exps", member=i) for name in MLP}

    def router(self, layer: int) -> Part:
        """Where what picks the experts lies, a row for each."""
        return Part(f"blk.{layer}.ffn_gate_inp")

    def shared_gate(self, layer: int) -> str | None:
        """The tensor, one row, that weighs the MLP that every token passes beside the experts."""
        return f"blk.{layer}.ffn_gate_inp_shexp.weight" if self.experts and self.mlp_suffix else None

    def sinks(self, layer: int) -> str | None:
        """The tensor of the sinks, (n_heads,)."""
        return f"blk.{layer}.attn_sinks.weight" if self.family.sinks else None

    def norms(self, layer: int) -> dict[str, str]:
        """The tensors of the norms that a layer has, by what they normalize."""
        f, found = self.family, dict[str, str]()
        if f.norms_before:
            found |= {"attention_norm": "attn_norm", "mlp_norm": f.mlp_norm}
        if f.norms_after:
            found |= {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
        if f.query_key_norm is not None:
            found["query_norm"] = "attn_q_norm"
            if self.layers[layer].cache_of is None:
                found["key_norm"] = "attn_k_norm"
        if self.layer_input_size is not None:
            found["input_post_norm"] = "post_norm"
        return {what: f"blk.{layer}.{name}.weight" for what, name in found.items()}


LAYER_SCALE = "blk.{}.layer_output_scale.weight"
INPUT_TABLE, INPUT_PROJECTION = "per_layer_token_embd.weight", "per_layer_model_proj.weight"
INPUT_NORM = "per_layer_proj_norm.weight"


def _slices(tensor: str, sizes: dict[str, int]) -> dict[str, Part]:
    """Projections that lie below each other in one tensor."""
    found, start = {}, 0
    for name, size in sizes.items():
        found[name] = Part(tensor, np.arange(start, start + size))
        start += size
    return found
