#!/usr/bin/env bash
# GatherBlockQuantized reads the same 4-bit codes as other numbers when they are packed into uint8.
#
# Expected: a table of 4-bit codes without zero points means the same whether its tensor has the type uint4 or is
#   uint8 with two codes a byte, the form for tools that have no uint4.
# Instead: uint4 codes have the zero point 0, packed ones 8 (and uint8 codes of 8 bits 128). Changing the container of
#   a table shifts every value of it by eight scales, and nothing is refused.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, CPU provider.
# Matters to: exporters that store token embeddings in 4 bits, and to converters between both forms.
# Output of 2026-11-30:
#   onnxruntime 1.32.0 - codes 0 to 15, scale 1, no zero points
#   uint4:  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
#   packed: -8 -7 -6 -5 -4 -3 -2 -1 0 1 2 3 4 5 6 7
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

codes = np.arange(16, dtype=np.uint8)[None]


def look_up(table):
    node = helper.make_node(
        "GatherBlockQuantized",
        ["table", "index", "scale"],
        ["y"],
        domain="com.microsoft",
        block_size=16,
        quantize_axis=1,
        gather_axis=0,
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("index", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.ones((1, 1), np.float32), "scale")],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"index": np.array([0])})[0][0]


typed = look_up(codes.astype(ml_dtypes.uint4))
packed = look_up(codes[:, ::2] | codes[:, 1::2] << 4)
print("onnxruntime", ort.__version__, "- codes 0 to 15, scale 1, no zero points")
print("uint4: ", *typed.astype(int))
print("packed:", *packed.astype(int))
sys.exit(0 if np.array_equal(typed, codes[0]) and np.array_equal(packed, codes[0] - 8.0) else 1)
PY
