"""Attention and positions of a Hugging Face encoder-decoder, as ONNX operators are traced out of them.

The same in torch's own operators: openvino/plain_attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from .decoder_modules import CONTRIB, Attributes, Trace, attend

Role: TypeAlias = Literal["encoder", "decoder", "cross"]
Gather: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # rows of a table, by indices of any shape


@dataclass(slots=True)
class EncoderDecoderTrace(Trace):
    """What flows through one traced step beside the hidden states.

    distances: what is added to scores where positions are relative, (1, heads, n, T): by layer, or one for all.
    cross: key and value of the source by layer, while a decoder is traced.
    """

    distances: tuple[Tensor, ...] = ()
    cross: tuple[tuple[Tensor, Tensor], ...] = ()
    logit_rows: Tensor | None = None
    hidden: Tensor | None = None

    def bias_of(self, attention: Attention) -> Tensor | None:
        """What is added to the scores of a layer's attention to its own tokens."""
        if not self.distances:
            return self.bias
        return self.distances[int(attention.module.layer_idx) if len(self.distances) > 1 else 0]


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention module: what it attends to, and how. scaling: of the scores."""

    name: str
    module: Any
    role: Role
    projections: tuple[str, ...]  # of query, key, value and result
    n_heads: int
    head_dim: int
    scaling: float

    @staticmethod
    def of(name: str, module: Any, role: Any, projections: tuple[str, ...]) -> Attention:
        """Described by its own attributes, which two generations of modeling files name in two ways."""
        n_heads = int(getattr(module, "num_heads", getattr(module, "n_heads", 0)))
        head_dim = int(getattr(module, "head_dim", getattr(module, "key_value_proj_dim", 0)))
        return Attention(name, module, role, projections, n_heads, head_dim, float(getattr(module, "scaling", 1.0)))

    def projection(self, i: int) -> Any:
        """Of query, key, value or result: the module that is there now."""
        return getattr(self.module, self.projections[i])

    def heads(self, i: int, x: Tensor) -> Tensor:
        """Query, key or value of x, (1, heads, rows, head_dim)."""
        return self.projection(i)(x).view(1, -1, self.n_heads, self.head_dim).transpose(1, 2)  # type: ignore[no-any-return]


class TracedPositions(nn.Module):
    """Rows of a table of positions, gathered by the step's own positions."""

    def __init__(self, table: Tensor, step: Callable[[], Trace], gather: Gather) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.step, self.gather = step, gather

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.gather(self.get_buffer("table"), self.step().position_ids)


class TracedSourcePositions(nn.Module):
    """Rows of a table of positions, one for each token of a source."""

    def __init__(self, table: Tensor, gather: Gather) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.gather = gather

    def forward(self, source: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.gather(self.get_buffer("table"), torch.arange(source.shape[1])[None])


def gather(table: Tensor, indices: Tensor) -> Tensor:
    """Rows of a table by indices of any shape: (*indices, columns)."""
    shape = [*indices.shape, table.shape[1]]
    return torch.onnx.ops.symbolic("Gather", (table, indices), {"axis": 0}, dtype=torch.float32, shape=shape)


def attend_past(trace: EncoderDecoderTrace, attention: Attention, x: Tensor) -> Tensor:
    """Attention to the cache and the new tokens, before its last projection: (1, n, width)."""
    q, k, v = (attention.heads(i, x) for i in range(3))
    trace.bias = trace.bias_of(attention)
    out = attend(trace, attention.module, q, k, v, scaling=attention.scaling, softcap=None, window=None)
    return out.reshape(1, x.shape[1], -1)


def attend_source(trace: EncoderDecoderTrace, attention: Attention, x: Tensor) -> Tensor:
    """Attention to the source's keys and values, before its last projection: (1, n, width).

    In three operators and not one: the attention operator for this cuts rows into tiles, so that a row's bits would
    depend on how many there are.
    """
    key, value = trace.cross[int(attention.module.layer_idx)]
    query = attention.heads(0, x)
    n, size = x.shape[1], key.shape[2]
    attributes: Attributes = {"transB": 1, "alpha": attention.scaling}
    scores = torch.onnx.ops.symbolic(
        CONTRIB + "FusedMatMul",
        (query, key),
        attributes,
        dtype=torch.float32,
        shape=[1, attention.n_heads, n, size],
        version=1,
    )
    mixed = torch.softmax(scores, dim=-1) @ value
    return mixed.transpose(1, 2).reshape(1, n, -1)


def attend_encoder(trace: EncoderDecoderTrace, attention: Attention, x: Tensor) -> Tensor:
    """Attention of all source tokens to all, before its last projection: (1, S, width)."""
    flat = [attention.projection(i)(x) for i in range(3)]
    inputs = [*flat, None, None, trace.bias_of(attention)]
    while inputs[-1] is None:
        inputs.pop()
    attributes: Attributes = {"num_heads": attention.n_heads, "scale": attention.scaling}
    shape = flat[2].shape
    return torch.onnx.ops.symbolic(
        CONTRIB + "MultiHeadAttention", inputs, attributes, dtype=torch.float32, shape=shape, version=1
    )


@dataclass(frozen=True, slots=True)
class RelativeBias:
    """What a model adds to attention scores by distance, query - key: (distances, heads).

    A table, because T5's buckets are logarithmic: a last bit of another logarithm would be another bucket. With the
    heads side by side a lookup copies a row and not one number: a step of 16 rows behind 300 entries takes 0.03 ms for
    it instead of 0.16.
    both_ways: distances from -farthest to farthest, as encoders see them, and not from 0. Farther is as farthest.
    """

    table: Tensor
    both_ways: bool

    @staticmethod
    @torch.no_grad()
    def of(module: Any) -> RelativeBias:
        """Made of a module's own buckets."""
        farthest, both_ways = int(module.relative_attention_max_distance), not module.is_decoder
        row = module.compute_bias(farthest + 1, farthest * (1 + both_ways) + 1)[0, :, farthest]  # (heads, entries)
        table = row.detach().float().flip(1).T
        return RelativeBias(table.contiguous(), both_ways)

    def between(self, queries: Tensor, keys: Tensor, table: Tensor, gather: Gather) -> Tensor:
        """(heads, queries, keys) for positions one after the other. table: this one's, as the traced step holds it."""
        n_distances = self.table.shape[0]
        distance = queries.reshape(-1, 1) - keys
        if self.both_ways:
            distance = distance + n_distances // 2
        return gather(table, distance.clamp(0, n_distances - 1)).permute(2, 0, 1)
