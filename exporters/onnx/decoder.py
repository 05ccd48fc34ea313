"""The weights of a decoder, as graphs are built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...runtime.files.decoder_description import DecoderShape
from ..quantize.blocks import Blocks, Floats, Halves


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight (rows are outputs) and its bias."""

    weight: Blocks | Floats
    bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """A gated MLP."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs that are picked from, made when they are asked for, and the weights (rows are experts) that pick."""

    router: Linear
    expert: Callable[[int], Mlp]
    shared_gate: Linear | None = None  # one row, whose sigmoid weighs the layer's own MLP


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer; q and k in halves, not in pairs. What it does not have is None."""

    query: Linear
    output: Linear
    key: Linear | None = None  # None: it attends to what another layer keeps
    value: Linear | None = None  # None: its keys are its values
    mlp: Mlp | None = None
    experts: Experts | None = None
    sinks: Floats | None = None  # (n_heads,)
    input_gate: Linear | None = None
    input_projection: Linear | None = None
    scale: float = 1.0
    attention_norm: Floats | None = None
    attention_post_norm: Floats | None = None
    mlp_norm: Floats | None = None
    mlp_post_norm: Floats | None = None
    query_norm: Floats | None = None
    key_norm: Floats | None = None
    input_post_norm: Floats | None = None


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What the layers are given beside what the last one gave: a second table of tokens, and a projection."""

    table: Blocks | Floats | Halves
    projection: Linear
    norm: Floats


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's weights, layers made when they are asked for."""

    shape: DecoderShape
    embedding: Blocks | Floats
    layer: Callable[[int], Layer]
    final_norm: Floats
    head: Blocks | Floats | None  # None: tied to the embedding
    inputs: LayerInputs | None = None
