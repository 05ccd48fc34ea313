#!/usr/bin/env bash
# OpenVINO's TopK, read from an ONNX graph, takes and orders equal values otherwise than ONNX says.
#
# Expected: ONNX defines that of two equal values the one with the lower index comes first, so that k=1 takes the
#   first of the largest, as ArgMax does.
# Instead: the front end makes a TopK of it that promises no order. In rows of small whole numbers k=1 mostly takes a
#   later one of the largest, and for k=50 other entries come out, in another order. ONNX Runtime keeps the rule, and
#   so does OpenVINO's own ArgMax in the same graph.
# Versions: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2.
# Matters to: greedy decoding, routing of experts and beam search that are part of a graph. Logits of quantized models
#   do tie.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4 onnxruntime 1.32.0
#   64 rows of 1000 whole numbers from 0 to 5; the first five of k=50 in the first row:
#   ONNX Runtime [0, 11, 14, 19, 25] OpenVINO [197, 233, 180, 195, 215]
#   rows in which OpenVINO's TopK differs: k=1 54, k=50 64; its ArgMax agrees: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet openvino==2026.4.1 \
    openvino-telemetry==2025.2.0 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0 protobuf==7.36.2 \
    || exit 2
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
import openvino
from onnx import TensorProto, helper, numpy_helper


def indices(x, k):
    graph = helper.make_graph(
        [
            helper.make_node("TopK", ["x", "k"], ["values", "index"], axis=1),
            helper.make_node("ArgMax", ["x"], ["first"], axis=1),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("index", "first")],
        [numpy_helper.from_array(np.array([k]), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    of_ort = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    core = openvino.Core()
    of_openvino = core.compile_model(core.read_model(model), "CPU")({"x": x})
    return [out.tolist() for out in of_ort], [of_openvino[i].tolist() for i in range(2)]


print("openvino", openvino.__version__, "onnxruntime", ort.__version__)
x = np.random.default_rng(0).integers(0, 6, (64, 1000)).astype(np.float32)
(one_ort, first_ort), (one, first) = indices(x, 1)
(fifty_ort, _), (fifty, _) = indices(x, 50)
print("64 rows of 1000 whole numbers from 0 to 5; the first five of k=50 in the first row:")
print("ONNX Runtime", fifty_ort[0][:5], "OpenVINO", fifty[0][:5])
wrong = [sum(a != b for a, b in zip(*pair)) for pair in ((one, one_ort), (fifty, fifty_ort))]
print(
    f"rows in which OpenVINO's TopK differs: k=1 {wrong[0]}, k=50 {wrong[1]}; "
    f"its ArgMax agrees: {one_ort == first_ort == first}"
)
sys.exit(0 if min(wrong) > 0 and one_ort == first_ort == first else 1)
PY
