#!/usr/bin/env bash
# The emulator of Qualcomm's NPU computes in float32 as long as no chip is named, and in float16 from then on.
#
# Expected: the HTP backend on x86 emulates the NPU: it takes quantized graphs only, and what it computes is what a
#   phone would.
# Instead: it takes a plain float32 graph of fixed shape and computes it to float32's last bits. With htp_arch named,
#   the same graph has float16's error, a thousand times as large. An accuracy check that names no chip says nothing
#   about the device.
# Versions: onnxruntime-qnn 2.7.0 beside onnxruntime 1.32.0, onnx 1.23.2.
# Matters to: who checks an export for a Snapdragon NPU on a desktop.
# Output of 2026-11-30:
#   onnxruntime 1.32.0 - a float32 MatMul on the emulated NPU, fallback to the CPU switched off
#   relative error: no chip named 2e-07, htp_arch 75 3e-04
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime-qnn==2.7.0 onnxruntime==1.32.0 \
    onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0 protobuf==7.36.2 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
weight, x = rng.standard_normal((64, 64)).astype(np.float32), rng.standard_normal((8, 64)).astype(np.float32)
exact = x.astype(np.float64) @ weight
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "weight"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 64])],
    [numpy_helper.from_array(weight, "weight")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
ort.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
device = next(device for device in ort.get_ep_devices() if device.ep_name == "qnn")


def error(**chip):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices([device], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **chip})
    y = ort.InferenceSession(model, options).run(None, {"x": x})[0]
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


unnamed, named = error(), error(htp_arch="75", soc_model="57")
print("onnxruntime", ort.__version__, "- a float32 MatMul on the emulated NPU, fallback to the CPU switched off")
print(f"relative error: no chip named {unnamed:.0e}, htp_arch 75 {named:.0e}")
sys.exit(0 if unnamed < 1e-6 and 1e-4 < named < 1e-2 else 1)
PY
