"""Modules and functions of a Hugging Face decoder, in the form in which ONNX operators are traced out of it.

Each stands in for one of the model's own while it is traced, computes nothing, and says which operator it is. Weights
are placeholders of the right shape; the real ones are written later, one at a time
(exporters/torch_to_onnx/initializers.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...runtime.errors import UnsupportedModelError
from .initializers import Matrix

Attributes: TypeAlias = dict[str, Any]  # of an operator

CONTRIB = "com.microsoft::"


def placeholder(shape: tuple[int, ...], dtype: torch.dtype, number: int) -> Tensor:
    """A tensor of this shape that takes no memory; its number keeps it apart from others of the same shape."""
    return torch.full((1,) * len(shape), number % 251, dtype=dtype).expand(shape)


class TracedLinear(nn.Module):
    """x W^T + b as MatMulNBits, or where W stays a float as MatMul.

    head: x is (rows, columns) and W lies as the token table does, so that the two can be one.
    """

    def __init__(self, matrix: Matrix, bias: Tensor | None, accuracy_level: int, number: int, head: bool) -> None:
        super().__init__()
        self.matrix, self.level, self.head = matrix, accuracy_level, head
        for part, (shape, dtype) in matrix.parts(gathered=head and matrix.bits is None).items():
            self.register_buffer(part, placeholder(shape, dtype, number))
        if "weight" not in self._buffers:
            self.weight = None  # T5 asks for the type of it
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.matrix.shape
        shape = [*x.shape[:-1], rows]
        attributes: Attributes
        if self.matrix.bits is None:
            weight = self.get_buffer("table" if self.head else "weight")
            operator, attributes = ("Gemm", {"transB": 1}) if self.head else ("MatMul", {})
            product = torch.onnx.ops.symbolic(operator, (x, weight), attributes, dtype=torch.float32, shape=shape)
            return product if self.bias is None else product + self.bias
        zero = None if self.matrix.symmetric else self.get_buffer("zero")
        inputs = [x, self.get_buffer("codes"), self.get_buffer("scale"), zero, None, self.bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "K": columns,
            "N": rows,
            "bits": self.matrix.bits,
            "block_size": self.matrix.block,
            "accuracy_level": self.level,
        }
        return torch.onnx.ops.symbolic(
            CONTRIB + "MatMulNBits", inputs, attributes, dtype=torch.float32, shape=shape, version=1
        )


class TracedEmbedding(nn.Module):
    """Rows of the token table as GatherBlockQuantized, or Gather where it stays a float; times the model's scale."""

    def __init__(self, matrix: Matrix, scale: float | None, number: int) -> None:
        super().__init__()
        self.matrix, self.scale_by = matrix, scale
        for part, (shape, dtype) in matrix.parts(gathered=True).items():
            self.register_buffer(part, placeholder(shape, dtype, number))

    def forward(self, ids: Tensor) -> Tensor:
        shape = [*ids.shape, self.matrix.shape[1]]
        if self.matrix.bits is None:
            table = self.get_buffer("table")
            found = torch.onnx.ops.symbolic("Gather", (table, ids), {"axis": 0}, dtype=torch.float32, shape=shape)
        else:
            inputs = [self.get_buffer("codes"), ids, self.get_buffer("scale"), self.get_buffer("zero")]
            attributes: Attributes = {
                "bits": self.matrix.bits,
                "block_size": self.matrix.block,
                "gather_axis": 0,
                "quantize_axis": 1,
            }
            found = torch.onnx.ops.symbolic(
                CONTRIB + "GatherBlockQuantized", inputs, attributes, dtype=torch.float32, shape=shape, version=1
            )
        return found if self.scale_by is None else found * self.scale_by


class TracedNorm(nn.Module):
    """x / rms(x) * gain as SimplifiedLayerNormalization."""

    def __init__(self, gain: Tensor, epsilon: float) -> None:
        super().__init__()
        self.gain, self.epsilon = nn.Parameter(gain, requires_grad=False), epsilon

    def forward(self, x: Tensor) -> Tensor:
        attributes: Attributes = {"axis": -1, "epsilon": self.epsilon}
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization", (x, self.gain), attributes, dtype=torch.float32, shape=x.shape, version=1
        )


class TracedRotary(nn.Module):
    """Instead of cosines and sines of positions, the tables that the attention operator looks them up in."""

    def __init__(self, tables: dict[str | None, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.kinds = list(tables)
        for i, (cos, sin) in enumerate(tables.values()):
            self.register_buffer(f"cos{i}", cos)
            self.register_buffer(f"sin{i}", sin)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        i = self.kinds.index(layer_type)
        return self.get_buffer(f"cos{i}"), self.get_buffer(f"sin{i}")


@dataclass(slots=True)
class Trace:
    """What flows through one traced step beside the hidden states."""

    position_ids: Tensor
    bias: Tensor | None  # None where nothing is
    sliding_bias: Tensor | None
    past: list[tuple[Tensor, Tensor]]
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    tables: tuple[Tensor, Tensor] | None = None  # of the layer being traced
    lengths: tuple[Tensor, Tensor] | None = None


def remember_tables(trace: Callable[[], Trace]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Stands in for apply_rotary_pos_emb: the attention operator rotates, by these tables."""

    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        trace().tables = (cos, sin)
        return q, k

    return apply


def attend(
    trace: Trace,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """One layer's GroupQueryAttention over its cache; query, key, value [1, heads, n, head_dim], result [1, n, heads,
    head_dim]."""
    _, n_heads, n, head_dim = query.shape
    kv_heads, i = key.shape[1], int(module.layer_idx)
    scaling = head_dim**-0.5 if scaling is None else float(scaling)
    tables, trace.tables = trace.tables, None
    if tables is not None:
        trace.queries[i] = _rotated(query, trace.position_ids, tables) * (scaling * head_dim**0.5)
        if 2 * tables[0].shape[1] != head_dim:  # only a part of each head turns
            query, key = (_rotated(x, trace.position_ids, tables) for x in (query, key))
            tables = None
    else:
        trace.queries[i] = query * (scaling * head_dim**0.5)
    flat = [x.transpose(1, 2).reshape(1, n, -1) for x in (query, key, value)]
    last, total = _lengths(trace)
    turn: tuple[Tensor | None, ...] = (None, None, None) if tables is None else (*tables, trace.position_ids)
    bias = trace.bias if window is None else trace.sliding_bias
    if bias is None:
        raise UnsupportedModelError(f"layer {i} has a window of {window} entries that its config does not name.")
    past = trace.past[i]
    attributes: Attributes = {
        "num_heads": n_heads,
        "kv_num_heads": kv_heads,
        "do_rotary": int(tables is not None),
        "rotary_interleaved": 0,
        "scale": scaling,
    }
    if softcap:
        attributes["softcap"] = float(softcap)
    out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        CONTRIB + "GroupQueryAttention",
        (*flat, *past, last, total, *turn, bias),
        attributes,
        dtypes=(torch.float32,) * 3,
        shapes=([1, n, n_heads * head_dim], past[0].shape, past[1].shape),
        version=1,
    )
    trace.present[i] = (present_key, present_value)
    return out.reshape(1, n, n_heads, head_dim)


def _rotated(x: Tensor, position_ids: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    attributes: Attributes = {"interleaved": 0}
    if 2 * tables[0].shape[1] != x.shape[-1]:
        attributes |= {"rotary_embedding_dim": 2 * tables[0].shape[1], "num_heads": x.shape[1]}
    return torch.onnx.ops.symbolic(
        CONTRIB + "RotaryEmbedding",
        (x, position_ids, *tables),
        attributes,
        dtype=torch.float32,
        shape=x.shape,
        version=1,
    )


def _lengths(trace: Trace) -> tuple[Tensor, Tensor]:
    """T - 1 and T as the attention operator wants them, read off the bias."""
    if trace.lengths is None:
        ends: Attributes = {"start": 3, "end": 4}
        shape = torch.onnx.ops.symbolic("Shape", (trace.bias,), ends, dtype=torch.int64, shape=[1])
        total = shape.to(torch.int32)
        trace.lengths = (total - 1, total.reshape(()))
    return trace.lengths
