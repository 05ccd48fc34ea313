"""Attention of a Hugging Face encoder-decoder in torch's own operators, as other tracers than ONNX's take it.

The decoder's cache grows by its new entries here (Concat); a graph may write them into the room that it has instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..torch_to_onnx.encoder_decoder_modules import Attention, EncoderDecoderTrace
from ..torch_to_onnx.encoder_decoder_swap import Operators


def attend_past(trace: EncoderDecoderTrace, attention: Attention, x: Tensor) -> Tensor:
    """Attention to the cache and the new tokens, before its last projection: (1, n, width)."""
    layer = int(attention.module.layer_idx)
    query, *new = (attention.heads(i, x) for i in range(3))
    trace.queries[layer] = query * (attention.scaling * attention.head_dim**0.5)
    key, value = (torch.cat([past, rows], dim=2) for past, rows in zip(trace.past[layer], new, strict=True))
    trace.present[layer] = key, value
    return _attend(attention, query, key, value, trace.bias_of(attention))


def attend_source(trace: EncoderDecoderTrace, attention: Attention, x: Tensor) -> Tensor:
    """Attention to the source's keys and values, before its last projection: (1, n, width)."""
    key, value = trace.cross[int(attention.module.layer_idx)]
    return _attend(attention, attention.heads(0, x), key, value, None)


def attend_encoder(trace: EncoderDecoderTrace, attention: Attention, x: Tensor) -> Tensor:
    """Attention of all source tokens to all, before its last projection: (1, S, width)."""
    query, key, value = (attention.heads(i, x) for i in range(3))
    return _attend(attention, query, key, value, trace.bias_of(attention))


def _attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    scores = query @ key.transpose(2, 3) * attention.scaling
    mixed = torch.softmax(scores if bias is None else scores + bias, dim=-1) @ value
    return mixed.transpose(1, 2).reshape(1, -1, attention.n_heads * attention.head_dim)


def gather(table: Tensor, indices: Tensor) -> Tensor:
    """Rows of a table by indices of any shape: (*indices, columns)."""
    return table.index_select(0, indices.reshape(-1)).reshape(*indices.shape, table.shape[1])


PLAIN = Operators(
    {"encoder": attend_encoder, "decoder": attend_past, "cross": attend_source},
    gather,
    lambda state, name, module: None,
)
