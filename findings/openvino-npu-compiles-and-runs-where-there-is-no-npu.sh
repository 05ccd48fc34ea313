#!/usr/bin/env bash
# OpenVINO's device NPU compiles and computes on a machine that has none.
#
# Expected: without the hardware, its driver and its compiler the device NPU, which is not listed, can do nothing:
#   compile_model raises.
# Instead: it does raise, unless NPU_USE_NPUW=YES and NPUW_DEVICES=CPU are given. Then the NPU's own path, which cuts
#   a model of fixed shapes into parts, compiles and runs it, every part on the CPU. So what a program does for the
#   NPU can be tested anywhere, and a model that compiled for NPU, and says that it runs there, does not mean that
#   there is one.
# Versions: openvino 2026.4.1.
# Matters to: who develops for NPUs without having one, and who takes a model that compiles for the presence of a
#   device.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4 - devices ['CPU']
#   NPU as it comes: refused; with both settings: compiled, right True, EXECUTION_DEVICES NPU
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6 || exit 2
cd "$folder"
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import openvino
from openvino import opset13

core = openvino.Core()
print("openvino", openvino.__version__, "- devices", core.available_devices)
if "NPU" in core.available_devices:
    print("This machine has an NPU: not shown here.")
    sys.exit(0)
x = opset13.parameter([2, 4], np.float32)
weight = opset13.constant(np.arange(12, dtype=np.float32).reshape(4, 3))
model = openvino.Model([opset13.matmul(x, weight, False, False)], [x])
try:
    core.compile_model(model, "NPU")
    refused = False
except RuntimeError:
    refused = True
compiled = core.compile_model(model, "NPU", {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU"})
y = compiled(np.ones((2, 4), np.float32))[0]
right = bool(np.allclose(y, weight.data.sum(axis=0), rtol=1e-2))
where = compiled.get_property("EXECUTION_DEVICES")
print(
    f"NPU as it comes: {'refused' if refused else 'compiled'}; with both settings: compiled, right {right}, "
    f"EXECUTION_DEVICES {where}"
)
sys.exit(0 if refused and right else 1)
PY
