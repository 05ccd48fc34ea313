#!/usr/bin/env bash
# A float16 graph that overflows does not overflow on ONNX Runtime's CPU provider, whatever the optimization level.
#
# Expected: tensors that a graph declares as float16 are float16: 1000 * 256 is infinite, and so is what follows from
#   it. At least with all optimizations disabled every operator gives what its type can hold.
# Instead: the CPU provider computes such operators in float32, puts casts around them and takes casts between
#   neighbours out again, with optimizations disabled, too. So what lies between is never float16: x * 256 / 256 gives
#   1000. Asked for the value between, as a further output, the same session gives infinity for it and 1000 for what
#   was computed from it.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, CPU provider.
# Matters to: who checks on a CPU whether a float16 export of a model overflows (a known fault of T5 and Gemma) before
#   it goes to a GPU or NPU: the check passes.
# Output of 2026-11-30:
#   onnxruntime 1.32.0
#   1000 * 256 / 256 in float16: default 1000.0, optimizations off 1000.0; with the value between as an output:
#     [inf, 1000.0]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 \
    numpy==2.4.6 ml_dtypes==0.6.0 protobuf==7.36.2 || exit 2
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def run(outputs, level):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "up"], ["between"]), helper.make_node("Mul", ["between", "down"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1]) for name in outputs],
        [
            numpy_helper.from_array(np.array(256, np.float16), "up"),
            numpy_helper.from_array(np.array(1 / 256, np.float16), "down"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [float(value[0]) for value in session.run(outputs, {"x": np.array([1000], np.float16)})]


levels = ort.GraphOptimizationLevel
off, default = run(["y"], levels.ORT_DISABLE_ALL), run(["y"], levels.ORT_ENABLE_ALL)
both = run(["between", "y"], levels.ORT_DISABLE_ALL)
print("onnxruntime", ort.__version__)
print(
    f"1000 * 256 / 256 in float16: default {default[0]}, optimizations off {off[0]}; "
    f"with the value between as an output: {both}"
)
sys.exit(0 if off == default == [1000.0] and both == [float("inf"), 1000.0] else 1)
PY
