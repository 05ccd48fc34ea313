"""A tiny decoder as exporters write it for OpenVINO: batched, its keys and values as state, attention masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from openvino import Model, Type
from openvino import opset13 as op

from pilotfish.runtime.files.decoder_description import DecoderShape
from pilotfish.runtime.files.decoder_shape import decoder_shape
from pilotfish.runtime.files.gguf_file import GgufFile, read_gguf


def stateful_ir(path: Path) -> Any:
    """The model of a llama-like GGUF file with f32 weights."""
    file = read_gguf(path)
    shape = decoder_shape(file)
    inputs = {name: op.parameter([-1, -1], Type.i64) for name in ("input_ids", "attention_mask", "position_ids")}
    inputs["beam_idx"] = op.parameter([-1], Type.i32)
    for name, node in inputs.items():
        node.set_friendly_name(name)
        node.output(0).set_names({name})
    table = op.constant(weight(file, "token_embd.weight"))
    x = op.gather(table, op.convert(inputs["input_ids"], "i32"), op.constant(0))
    at = op.convert(op.unsqueeze(op.unsqueeze(inputs["position_ids"], op.constant(1)), op.constant(3)), "f32")
    angles = op.multiply(at, op.constant(np.tile(shape.rotations[0].inverse_frequencies, 2).astype(np.float32)))
    waves = op.cos(angles), op.sin(angles)
    sinks: list[Any] = []
    for i in range(shape.n_layers):
        h = norm(x, weight(file, f"blk.{i}.attn_norm.weight"), shape)
        x = op.add(x, attention(file, shape, i, h, waves, inputs, sinks))
        h = norm(x, weight(file, f"blk.{i}.ffn_norm.weight"), shape)
        gate = op.swish(product(h, weight(file, f"blk.{i}.ffn_gate.weight")))
        up = product(h, weight(file, f"blk.{i}.ffn_up.weight"))
        x = op.add(x, product(op.multiply(gate, up), weight(file, f"blk.{i}.ffn_down.weight")))
    logits = op.matmul(norm(x, weight(file, "output_norm.weight"), shape), table, False, True)
    result = op.result(logits)
    result.output(0).set_names({"logits"})
    return Model([result], sinks, list(inputs.values()), "tiny")


def weight(file: GgufFile, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return file.tensors[name].values()


def product(x: Any, matrix: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    return op.matmul(x, op.constant(matrix), False, True)


def norm(x: Any, gain: np.ndarray[Any, np.dtype[np.float32]], shape: DecoderShape) -> Any:
    mean = op.reduce_mean(op.power(x, op.constant(np.float32(2))), op.constant([-1]), True)
    scale = op.divide(op.constant(np.float32(1)), op.sqrt(op.add(mean, op.constant(np.float32(shape.norm_epsilon)))))
    return op.multiply(op.constant(gain), op.multiply(x, scale))


def attention(
    file: GgufFile,
    shape: DecoderShape,
    i: int,
    h: Any,
    waves: tuple[Any, Any],
    inputs: dict[str, Any],
    sinks: list[Any],
) -> Any:
    def heads(name: str, n: int) -> Any:
        matrix = weight(file, f"blk.{i}.attn_{name}.weight")
        if name != "v" and shape.family.pairs:
            matrix = matrix[shape.half_order(n)]
        apart = op.reshape(product(h, matrix), np.array([0, -1, n, shape.head_dim]), True)
        return op.transpose(apart, np.array([0, 2, 1, 3]))

    def rotated(x: Any) -> Any:
        half, three, one = shape.head_dim // 2, op.constant([3]), op.constant([1])
        low = op.slice(x, op.constant([0]), op.constant([half]), one, three)
        high = op.slice(x, op.constant([half]), op.constant([2 * half]), one, three)
        turned = op.concat([op.multiply(high, op.constant(np.float32(-1))), low], -1)
        return op.add(op.multiply(x, waves[0]), op.multiply(turned, waves[1]))

    def with_past(x: Any, name: str) -> Any:
        batch = op.gather(op.shape_of(inputs["input_ids"], "i64"), op.constant([0]), op.constant(0))
        dims = op.concat([batch, op.constant(np.array([shape.kv_heads, 0, shape.head_dim]))], 0)
        empty = op.broadcast(op.constant(np.float32(0)), dims)
        past = op.read_value(empty, f"{name}.{i}", Type.f32, [-1, shape.kv_heads, -1, shape.head_dim])
        whole = op.concat([op.gather(past, inputs["beam_idx"], op.constant(0)), x], -2)
        sinks.append(op.assign(whole, f"{name}.{i}"))
        group = shape.n_heads // shape.kv_heads
        each = op.unsqueeze(whole, op.constant(2))
        wide = op.broadcast(each, np.array([1, 1, group, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, np.array([0, shape.n_heads, -1, shape.head_dim]), True)

    q, k = rotated(heads("q", shape.n_heads)), rotated(heads("k", shape.kv_heads))
    total = op.gather(op.shape_of(inputs["attention_mask"], "i64"), op.constant(1), op.constant(0))
    columns = op.range(op.constant(np.int64(0)), total, op.constant(np.int64(1)), "i64")
    behind = op.greater(columns, op.unsqueeze(inputs["position_ids"], op.constant(2)))  # (1, n, total)
    hidden = op.select(op.unsqueeze(behind, op.constant(1)), op.constant(np.float32(-1e9)), op.constant(np.float32(0)))
    seen = op.subtract(op.convert(inputs["attention_mask"], "f32"), op.constant(np.float32(1)))
    mask = op.add(hidden, op.multiply(op.unsqueeze(seen, op.constant([1, 2])), op.constant(np.float32(1e9))))
    scale = op.constant(np.float32(shape.head_dim**-0.5))
    keys, values = with_past(k, "key"), with_past(heads("v", shape.kv_heads), "value")
    mixed = op.scaled_dot_product_attention(q, keys, values, mask, scale)
    flat = op.reshape(
        op.transpose(mixed, np.array([0, 2, 1, 3])), np.array([0, -1, shape.n_heads * shape.head_dim]), True
    )
    return product(flat, weight(file, f"blk.{i}.attn_output.weight"))
