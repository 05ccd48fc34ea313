"""The weights of a decoder, as graphs are built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...runtime.files.decoder_description import DecoderShape
from ..quantize.blocks import Blocks, Floats


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
    key: Linear
    value: Linear
    output: Linear
    mlp: Mlp | None = None
    experts: Experts | None = None
    sinks: Floats | None = None  # (n_heads,)
    attention_norm: Floats | None = None
    attention_post_norm: Floats | None = None
    mlp_norm: Floats | None = None
    mlp_post_norm: Floats | None = None
    query_norm: Floats | None = None
    key_norm: Floats | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder's weights, layers made when they are asked for."""

    shape: DecoderShape
    embedding: Blocks | Floats
    layer: Callable[[int], Layer]
    final_norm: Floats
    head: Blocks | Floats | None  # None: tied to the embedding
