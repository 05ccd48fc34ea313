#!/usr/bin/env bash
# OpenVINO answers otherwise when the empty past of GroupQueryAttention is declared with fixed dimensions.
#
# Expected: fixing the dimensions of a graph to those of the data it is given changes no number; and a prompt that is
#   read behind an empty past (length 0) attends to itself.
# Instead: with symbols OpenVINO and ONNX Runtime agree. With the very same dimensions as numbers OpenVINO takes the
#   past for a buffer with room for all, finds none, returns a cache of length 0 and attention that is wrong, without
#   an error. ONNX Runtime gives the same as before.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2.
# Matters to: who fixes shapes, as for an NPU, of ONNX decoders that onnxruntime-genai's builder or others have
#   written.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4 onnxruntime 1.32.0
#   ONNX Runtime, symbols: cache of 3, largest difference 0.0e+00
#   ONNX Runtime, numbers: cache of 3, largest difference 0.0e+00
#   OpenVINO, symbols: cache of 3, largest difference 2.4e-07
#   OpenVINO, numbers: cache of 0, largest difference 3.8e+00
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
from onnx import TensorProto, helper

heads, kv_heads, size, rows = 4, 2, 16, 3
rng = np.random.default_rng(0)
feeds = {
    "query": rng.standard_normal((1, rows, heads * size)).astype(np.float32),
    "key": rng.standard_normal((1, rows, kv_heads * size)).astype(np.float32),
    "value": rng.standard_normal((1, rows, kv_heads * size)).astype(np.float32),
    "past_key": np.zeros((1, kv_heads, 0, size), np.float32),
    "past_value": np.zeros((1, kv_heads, 0, size), np.float32),
    "last": np.array([rows - 1], np.int32),
    "total": np.array(rows, np.int32),
}


def model(symbols):
    inputs = []
    for name, array in feeds.items():
        shape = list(array.shape)
        if symbols and array.ndim == 3:
            shape[1] = "rows"
        if symbols and array.ndim == 4:
            shape[2] = "past"
        inputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT if array.ndim > 2 else TensorProto.INT32, shape)
        )
    outputs = ["y", "present_key", "present_value"]
    node = helper.make_node(
        "GroupQueryAttention", list(feeds), outputs, domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads
    )
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "graph", inputs, infos)
    return helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()


def by_ort(symbols):
    return ort.InferenceSession(model(symbols), providers=["CPUExecutionProvider"]).run(None, feeds)


def by_openvino(symbols):
    core = openvino.Core()
    out = core.compile_model(core.read_model(model(symbols)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)
    return [out[i] for i in range(3)]


print("openvino", openvino.__version__, "onnxruntime", ort.__version__)
right = by_ort(True)[0]
errors = {}
for name, run in (("ONNX Runtime", by_ort), ("OpenVINO", by_openvino)):
    for symbols in (True, False):
        y, present, _ = run(symbols)
        errors[name, symbols] = float(abs(y - right).max())
        print(
            f"{name}, {'symbols' if symbols else 'numbers'}: "
            f"cache of {present.shape[2]}, largest difference {errors[name, symbols]:.1e}"
        )
wrong = errors.pop(("OpenVINO", False))
sys.exit(0 if max(errors.values()) < 1e-5 and wrong > 0.1 else 1)
PY
