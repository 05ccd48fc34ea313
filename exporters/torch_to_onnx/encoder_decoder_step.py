"""Encoder and decoder step of a swapped model, traced by torch into the graphs of docs/onnx-encoder-decoder.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from .decoder_step import Inputs, traced
from .encoder_decoder_modules import EncoderDecoderTrace, RelativeBias
from .encoder_decoder_swap import SwappedEncoderDecoder

_N, _ROWS, _TOTAL, _ROOM, _SOURCE = 3, 2, 7, 16, 5  # sizes of the traced step: all different, none of them special


class Encode(nn.Module):
    """The encoder, and the keys and values that the decoder's layers make of its result."""

    def __init__(self, state: SwappedEncoderDecoder) -> None:
        super().__init__()
        self.model, self.state = state.model, state
        _hold(self, state.encoder_bias)

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        trace = EncoderDecoderTrace(source, None, None, [])
        if self.state.encoder_bias:
            places = torch.arange(source.shape[1])
            trace.distances = tuple(bias[None] for bias in _between(self, self.state.encoder_bias, places, places))
        self.state.encoder_decoder = trace
        hidden = self.model.get_encoder()(source).last_hidden_state
        kept = (attention.heads(i, hidden) for attention in self.state.cross for i in (1, 2))
        return (*kept, hidden[0])


class Decode(nn.Module):
    """One step of the decoder."""

    def __init__(self, state: SwappedEncoderDecoder) -> None:
        super().__init__()
        self.model, self.state = state.model, state
        _hold(self, state.decoder_bias)

    def forward(self, input_ids: Tensor, position_ids: Tensor, logit_rows: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        state, bias = self.state, rest[0]
        distances: tuple[Tensor, ...] = ()
        if state.decoder_bias:
            places, rest = rest[1], rest[1:]
            distances = tuple(bias + far for far in _between(self, state.decoder_bias, position_ids, places))
        layers = range(len(state.cross))
        pairs = list(zip(rest[1::2], rest[2::2], strict=True))
        past, cross = pairs[: len(layers)], pairs[len(layers) :]
        trace = EncoderDecoderTrace(
            position_ids, bias, None, past, distances=distances, cross=tuple(cross), logit_rows=logit_rows
        )
        state.encoder_decoder = trace
        unread: Any = torch.zeros(1, 1, self.model.config.d_model)
        encoded = BaseModelOutput(last_hidden_state=unread)
        logits = self.model(encoder_outputs=encoded, decoder_input_ids=input_ids, use_cache=False).logits
        assert trace.hidden is not None
        presents = (tensor for i in layers for tensor in trace.present[i])
        return (logits, trace.hidden, *presents, *(trace.queries[i] for i in layers))


def _hold(step: nn.Module, biases: Sequence[RelativeBias]) -> None:
    for i, bias in enumerate(biases):
        step.register_buffer(f"distances_{i}", bias.table)


def _between(step: Any, biases: Sequence[RelativeBias], queries: Tensor, keys: Tensor) -> list[Tensor]:
    gather = step.state.operators.gather
    return [bias.between(queries, keys, step.get_buffer(f"distances_{i}"), gather) for i, bias in enumerate(biases)]


def trace_encoder(state: SwappedEncoderDecoder) -> ir.Model:
    """The encoder's graph, named as the contract says, weights placeholders named after their modules."""
    return traced(Encode(state), encoder_inputs(state), encoder_outputs(state), n_named=1)


def trace_decoder(state: SwappedEncoderDecoder) -> ir.Model:
    """The decoder's observing graph, named as the contract says, weights placeholders named after their modules."""
    return traced(Decode(state), decoder_inputs(state, _TOTAL), decoder_outputs(state), n_named=3)


def encoder_inputs(state: SwappedEncoderDecoder) -> Inputs:
    """What an encoder takes."""
    config: Any = state.model.config
    if hasattr(config, "num_mel_bins"):
        return {"source_features": (torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions), {})}
    return {"source_ids": (torch.ones(1, _SOURCE, dtype=torch.int64), {1: "S"})}


def encoder_outputs(state: SwappedEncoderDecoder) -> list[str]:
    """What Encode gives, by name."""
    return [*_layers("cross", state), "encoder_hidden"]


def decoder_inputs(state: SwappedEncoderDecoder, total: int) -> Inputs:
    """What a decoder takes. total: entries that the traced step sees."""
    inputs: Inputs = {
        "input_ids": (torch.ones(1, _N, dtype=torch.int64), {1: "n"}),
        "position_ids": (torch.arange(_N)[None], {1: "n"}),
        "logit_rows": (torch.arange(_ROWS), {0: "m"}),
        "bias": (torch.zeros(1, 1, _N, total), {2: "n", 3: "T"}),
    }
    if state.decoder_bias:
        inputs["entry_positions"] = (torch.arange(total), {0: "T"})
    first = state.cross[0]
    for name in _layers("past", state):
        inputs[name] = (torch.zeros(1, first.n_heads, _ROOM, first.head_dim), {2: "MAX"})
    for name in _layers("cross", state):
        inputs[name] = (torch.zeros(1, first.n_heads, _SOURCE, first.head_dim), {2: "S"})
    return inputs


def decoder_outputs(state: SwappedEncoderDecoder) -> list[str]:
    """What Decode gives, by name."""
    return ["logits", "hidden", *_layers("present", state), *(f"query_{i}" for i in range(len(state.cross)))]


def _layers(what: str, state: SwappedEncoderDecoder) -> list[str]:
    return [f"{what}_{kind}_{i}" for i in range(len(state.cross)) for kind in ("key", "value")]
