#!/usr/bin/env bash
# With OpenVINO's default u8 cache PagedAttention answers otherwise when the same tokens arrived in other steps, by
# far more than last bits.
#
# Expected: a quantized cache is coarser, but a function of what it holds: whether a prompt is read at once, in chunks
#   or token by token changes no more than last bits.
# Instead: keys in u8 are quantized by channel over a block of 32 entries, and the scales of a block depend on how its
#   entries arrived: logits differ by half a percent. Caches in f32, in f16 and in u8 with
#   KEY_CACHE_QUANT_MODE=BY_TOKEN give the same bits for every way of arriving.
# Versions: openvino 2026.4.1, CPU, inference precision f32, one thread.
# Matters to: speculative decoding and prefix caches, whose tokens arrive in other steps than those of plain decoding:
#   it is not kernel noise that they see.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4 - largest difference to the tokens arriving at once,
#     relative to the largest logit
#   f32: by twos 0.0e+00, by eights 0.0e+00
#   f16: by twos 0.0e+00, by eights 0.0e+00
#   u8: by twos 4.9e-03, by eights 5.0e-03
#   u8 by token: by twos 0.0e+00, by eights 0.0e+00
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet openvino==2026.4.1 \
    openvino-telemetry==2025.2.0 numpy==2.4.6 || exit 2
cd "$folder"
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import openvino
import openvino.opset6 as opset6
import openvino.opset13 as op
from openvino._offline_transformations import paged_attention_transformation
from openvino.op.util import Variable, VariableInfo

words, heads, size = 64, 2, 64
width = heads * size
rng = np.random.default_rng(0)


def random(*shape):
    return op.constant(rng.standard_normal(shape).astype(np.float32))


def parameter(name, shape, kind):
    made = op.parameter(shape, kind, name=name)
    made.output(0).tensor.set_names({name})
    return made


def decoder():
    """A decoder of one attention layer over tokens and positions, its past as state."""
    ids = parameter("input_ids", [-1, -1], np.int64)
    mask = parameter("attention_mask", [-1, -1], np.int64)
    positions = parameter("position_ids", [-1, -1], np.int64)
    beams = parameter("beam_idx", [-1], np.int32)
    zero = op.constant(0)
    x = op.add(op.gather(random(words, width), ids, zero), op.gather(random(128, width), positions, zero))
    batch = op.gather(op.shape_of(ids), op.constant([0]), zero)
    empty = op.broadcast(op.constant(np.float32(0)), op.concat([batch, op.constant(np.array([heads, 0, size]))], 0))
    sinks, attended = [], []
    for name in ("query", "key", "value"):
        product = op.reshape(op.matmul(x, random(width, width), False, False), op.constant([0, 0, heads, size]), True)
        rows = op.transpose(op.multiply(product, op.constant(np.float32(width**-0.5))), op.constant([0, 2, 1, 3]))
        if name != "query":
            info = VariableInfo()
            info.variable_id, info.data_type = f"past_key_values.0.{name}", openvino.Type.f32
            info.data_shape = openvino.PartialShape([-1, heads, -1, size])
            variable = Variable(info)
            rows = op.concat([op.gather(opset6.read_value(empty, variable), beams, zero), rows], 2)
            sinks.append(opset6.assign(rows, variable))
        attended.append(rows)
    total = op.gather(op.shape_of(attended[1]), op.constant([2]), zero)
    nothing = op.broadcast(op.constant(np.float32(0)), op.concat([op.constant(np.array([1, 1, 1])), total], 0))
    attention = op.transpose(op.scaled_dot_product_attention(*attended, nothing), op.constant([0, 2, 1, 3]))
    flat = op.reshape(attention, op.constant([0, 0, width]), True)
    logits = op.result(op.matmul(flat, random(width, words), False, False))
    logits.output(0).tensor.set_names({"logits"})
    return openvino.Model([logits], sinks, [ids, mask, positions, beams])


model = decoder()
paged_attention_transformation(model, False, False, False, False, False, False, False)
tokens = rng.integers(0, words, 40)


def last_logits(steps, **properties):
    """Logits of the last of 40 tokens that arrived in steps of so many."""
    properties |= {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    for port in compiled.inputs:
        if "cache" in port.any_name:
            shape = [2 if length.is_dynamic else length.get_length() for length in port.partial_shape]
            request.set_tensor(port, openvino.Tensor(port.element_type, openvino.Shape(shape)))
    names = {port.any_name for port in compiled.inputs}
    past = 0
    for n in steps:
        blocks = -(-(past + n) // 32)
        feeds = {
            "input_ids": tokens[past : past + n],
            "position_ids": np.arange(past, past + n),
            "past_lens": np.array([past], np.int32),
            "subsequence_begins": np.array([0, n], np.int32),
            "block_indices": np.arange(blocks, dtype=np.int32),
            "block_indices_begins": np.array([0, blocks], np.int32),
            "max_context_len": np.array(past + n, np.int32),
        }
        out = request.infer({name: array for name, array in feeds.items() if name in names})["logits"]
        past += n
    return out.reshape(-1, words)[-1].copy()


arrivals = {"at once": [38, 2], "by twos": [2] * 20, "by eights": [8] * 4 + [6, 2]}  # the last step is the same
by_token = {"KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
kinds = {
    "f32": {"KV_CACHE_PRECISION": "f32"},
    "f16": {"KV_CACHE_PRECISION": "f16"},
    "u8": {"KV_CACHE_PRECISION": "u8"},
    "u8 by token": by_token,
}
print(
    "openvino",
    openvino.__version__,
    "- largest difference to the tokens arriving at once, relative to the largest logit",
)
spread = {}
for kind, properties in kinds.items():
    first, *others = (last_logits(steps, **properties) for steps in arrivals.values())
    spread[kind] = [float(abs(y - first).max() / abs(first).max()) for y in others]
    print(f"{kind}: by twos {spread[kind][0]:.1e}, by eights {spread[kind][1]:.1e}")
exact = max(max(spread[kind]) for kind in ("f32", "f16", "u8 by token"))
sys.exit(0 if exact < 1e-5 and min(spread["u8"]) > 1e-3 else 1)
PY
