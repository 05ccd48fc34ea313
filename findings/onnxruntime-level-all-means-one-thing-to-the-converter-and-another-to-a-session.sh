#!/usr/bin/env bash
# Level "all" of ONNX Runtime's converter to the ORT format leaves out what level "all" of a session bakes in.
#
# Expected: "all", the converter's default, is the level ORT_ENABLE_ALL: it gives this processor's layouts to
#   convolutions, so that "extended" is what a file for other processors needs. Both ways to the same file do alike.
# Instead: the converter's "all" writes the operators that "extended" does, unless --target_platform amd64 is given. A
#   session with ORT_ENABLE_ALL that saves its optimized model does bake the layouts in, with a warning only. What
#   decides is the way, not the level.
# Versions: onnxruntime 1.32.0, onnx 1.23.2.
# Matters to: who makes files for phones on a desktop.
# Output of 2026-11-30:
#   onnxruntime 1.32.0 - is the convolution in this processor's layout?
#   converter: all (its default) False, all for amd64 True; session: all True, extended False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0 \
    protobuf==7.36.2 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

weight = np.random.default_rng(0).standard_normal((32, 16, 3, 3)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "weight"], ["t"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["t"], ["y"])],
    "graph",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 8, 8])],
    [numpy_helper.from_array(weight, "weight")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")


def has_layouts(path):
    return b"ReorderInput" in Path(path).read_bytes()


def converted(*options):
    command = [
        sys.executable,
        "-m",
        "onnxruntime.tools.convert_onnx_models_to_ort",
        "model.onnx",
        "--optimization_style",
        "Fixed",
    ]
    subprocess.run([*command, "--output_dir", "converted", *options], check=True, capture_output=True)
    return has_layouts("converted/model.ort")


def saved(level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = "saved.ort"
    options.log_severity_level = 3
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    return has_layouts("saved.ort")


by_converter, for_amd64 = converted(), converted("--target_platform", "amd64")
levels = ort.GraphOptimizationLevel
by_session, extended = saved(levels.ORT_ENABLE_ALL), saved(levels.ORT_ENABLE_EXTENDED)
print("onnxruntime", ort.__version__, "- is the convolution in this processor's layout?")
print(
    f"converter: all (its default) {by_converter}, all for amd64 {for_amd64}; "
    f"session: all {by_session}, extended {extended}"
)
sys.exit(0 if (by_converter, for_amd64, by_session, extended) == (False, True, True, False) else 1)
PY
