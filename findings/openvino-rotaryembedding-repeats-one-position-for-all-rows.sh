#!/usr/bin/env bash
# OpenVINO rotates all rows by the first position where RotaryEmbedding is given one position for a whole step.
#
# Expected: position_ids of shape [1] in com.microsoft's RotaryEmbedding are an offset: row i stands at
#   position_ids[0] + i. So ONNX Runtime documents and computes it.
# Instead: OpenVINO reads the same graph, refuses nothing, and rotates every row to position_ids[0]. A step of one row
#   is right and every wider one is wrong, so a model looks fine while it decodes and is wrong after a prompt.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2.
# Matters to: who runs ONNX decoders on both runtimes and tests them a token at a time.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4 onnxruntime 1.32.0 - three rows, position_ids = [4]
#   ONNX Runtime: at 4, 5, 6 True, at 4, 4, 4 False
#   OpenVINO:     at 4, 5, 6 False, at 4, 4, 4 True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 openvino-telemetry==2025.2.0 onnxruntime==1.32.0 \
    onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0 protobuf==7.36.2 || exit 2
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
import openvino
from onnx import TensorProto, helper, numpy_helper

angles = np.arange(32)[:, None] * 10.0 ** -np.arange(4)
cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
x = np.random.default_rng(0).standard_normal((1, 2, 3, 8)).astype(np.float32)
node = helper.make_node(
    "RotaryEmbedding", ["x", "position", "cos", "sin"], ["y"], domain="com.microsoft", interleaved=0
)
graph = helper.make_graph(
    [node],
    "graph",
    [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, "n", 8]),
        helper.make_tensor_value_info("position", TensorProto.INT64, [1]),
    ],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    [numpy_helper.from_array(cosine, "cos"), numpy_helper.from_array(sine, "sin")],
)
domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
feeds = {"x": x, "position": np.array([4])}
of_ort = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
core = openvino.Core()
of_openvino = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)[0]


def rotated(positions):
    first, second = x[..., :4], x[..., 4:]
    c, s = cosine[positions], sine[positions]
    return np.concatenate([first * c - second * s, first * s + second * c], axis=-1)


def is_at(y, positions):
    return bool(np.allclose(y, rotated(positions), atol=1e-5))


print("openvino", openvino.__version__, "onnxruntime", ort.__version__, "- three rows, position_ids = [4]")
print(f"ONNX Runtime: at 4, 5, 6 {is_at(of_ort, [4, 5, 6])}, at 4, 4, 4 {is_at(of_ort, [4, 4, 4])}")
print(f"OpenVINO:     at 4, 5, 6 {is_at(of_openvino, [4, 5, 6])}, at 4, 4, 4 {is_at(of_openvino, [4, 4, 4])}")
sys.exit(0 if is_at(of_ort, [4, 5, 6]) and is_at(of_openvino, [4, 4, 4]) else 1)
PY
