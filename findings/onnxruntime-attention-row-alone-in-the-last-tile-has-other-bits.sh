#!/usr/bin/env bash
# In ONNX Runtime's attention a prompt's last row has other bits where the prompt is one row longer than whole tiles.
#
# Expected: rows of one step do not see each other, so a row has the same bits however many are computed beside it; or
#   else, kernels change with the number of rows in a way that separates narrow steps from wide ones.
# Instead: GroupQueryAttention takes rows in tiles of 128 (head size 64). Steps of up to 128 rows agree bit for bit,
#   so do 130 and 256; in steps of 129 and 257 rows the one that is alone in the last tile has other last bits.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, CPU provider, float32, one thread.
# Matters to: who fills a prefix cache by chunks and expects the same bits from other chunks, or argues from equal
#   bits that speculative decoding is exact. A test with short prompts shows nothing.
# Output of 2026-11-30:
#   onnxruntime 1.32.0 - steps of 1 to 299 rows against one of 300
#   rows with other bits, by the step's width: {129: [128], 257: [256]}
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 \
    numpy==2.4.6 ml_dtypes==0.6.0 protobuf==7.36.2 || exit 2
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

heads, kv_heads, size = 4, 2, 64
shapes = {
    "query": [1, "n", heads * size],
    "key": [1, "n", kv_heads * size],
    "value": [1, "n", kv_heads * size],
    "past_key": [1, kv_heads, "past", size],
    "past_value": [1, kv_heads, "past", size],
    "last": [1],
    "total": [],
}
outputs = ["y", "present_key", "present_value"]
node = helper.make_node(
    "GroupQueryAttention", list(shapes), outputs, domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads
)
graph = helper.make_graph(
    [node],
    "graph",
    [
        helper.make_tensor_value_info(name, TensorProto.FLOAT if len(shape) > 2 else TensorProto.INT32, shape)
        for name, shape in shapes.items()
    ],
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
)
domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
query, key, value = (rng.standard_normal((1, 300, n * size)).astype(np.float32) for n in (heads, kv_heads, kv_heads))


def attend(n):
    empty = np.zeros((1, kv_heads, 0, size), np.float32)
    feeds = {"query": query[:, :n], "key": key[:, :n], "value": value[:, :n], "past_key": empty, "past_value": empty}
    feeds |= {"last": np.array([n - 1], np.int32), "total": np.array(n, np.int32)}
    return session.run(["y"], feeds)[0][0]


whole = attend(300)
other = {}
for n in range(1, 300):
    rows = np.flatnonzero((attend(n) != whole[:n]).any(axis=1))
    if len(rows):
        other[n] = rows.tolist()
print("onnxruntime", ort.__version__, "- steps of 1 to 299 rows against one of 300")
print("rows with other bits, by the step's width:", other)
tile = min(other, default=1) - 1
sys.exit(0 if tile >= 32 and other == {n: [n - 1] for n in range(tile + 1, 300, tile)} else 1)
PY
