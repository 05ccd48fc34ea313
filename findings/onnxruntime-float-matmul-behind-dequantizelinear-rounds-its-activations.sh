#!/usr/bin/env bash
# A float32 MatMul behind DequantizeLinear is computed with activations rounded to 8 bits.
#
# Expected: a graph of standard operators, DequantizeLinear (int4 weights in blocks, float32 scales) and MatMul, is
#   float32 arithmetic. Optimizations change speed and last bits.
# Instead: from the level "extended" on, which includes the default, both operators become one MatMulNBits with
#   accuracy_level 4, which rounds the input to 8 bits a block. The result is thousands of times further off. The
#   session entry session.qdq_matmulnbits_accuracy_level = 1 gives float32 back.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, CPU provider.
# Matters to: who stores weights in 4 bits with standard operators and compares the result with its source, or with
#   another engine.
# Output of 2026-11-30:
#   onnxruntime 1.32.0
#   relative error: optimizations off 3e-07, basic 3e-07, default 6e-03, default and accuracy level 1 3e-07
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0 \
    protobuf==7.36.2 || exit 2
"$folder/venv/bin/python" - <<'PY'
import sys

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
rows, columns, block = 256, 128, 32
codes = rng.integers(-8, 8, (rows, columns))
scales = rng.uniform(0.01, 0.02, (rows // block, columns)).astype(np.float32)
graph = helper.make_graph(
    [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weight"], axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
    [numpy_helper.from_array(codes.astype(ml_dtypes.int4), "codes"), numpy_helper.from_array(scales, "scales")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
x = rng.standard_normal((4, rows)).astype(np.float32)
exact = x.astype(np.float64) @ (codes * np.repeat(scales.astype(np.float64), block, axis=0))


def error(level, entries=()):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    for key, value in entries:
        options.add_session_config_entry(key, value)
    y = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


levels = ort.GraphOptimizationLevel
off, basic, default = error(levels.ORT_DISABLE_ALL), error(levels.ORT_ENABLE_BASIC), error(levels.ORT_ENABLE_ALL)
asked = error(levels.ORT_ENABLE_ALL, [("session.qdq_matmulnbits_accuracy_level", "1")])
print("onnxruntime", ort.__version__)
print(
    f"relative error: optimizations off {off:.0e}, basic {basic:.0e}, default {default:.0e}, "
    f"default and accuracy level 1 {asked:.0e}"
)
sys.exit(0 if max(off, basic, asked) < 1e-5 and default > 1e-3 else 1)
PY
