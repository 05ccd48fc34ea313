#!/usr/bin/env bash
# OrtValue.ortvalue_from_numpy shares a whole array's memory and silently copies a slice's; copy_outputs_to_cpu copies
# on the CPU, too.
#
# Expected: ortvalue_from_numpy either always copies or always shares. And on the CPU copy_outputs_to_cpu has nothing
#   to copy, so it returns the memory that was bound as an output, as get_outputs()[0].numpy() does.
# Instead: a contiguous array is shared, so what is written into it later is read by the next run; a slice that is not
#   contiguous is copied once, and the next run reads what it held on the day of binding. copy_outputs_to_cpu always
#   copies.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, CPU provider.
# Matters to: who binds key-value buffers of his own and writes into them between steps: a view of a larger buffer
#   goes stale without a word, and fetching outputs by the documented call copies a whole cache a step.
# Output of 2026-11-30:
#   onnxruntime 1.32.0 - arrays of ones are bound, then overwritten with fives
#   the run reads 5.0 from a whole array, 1.0 from a slice
#   shares the bound output's memory: numpy() True, copy_outputs_to_cpu() False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0 \
    protobuf==7.36.2 || exit 2
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "graph", infos[:1], infos[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

y = np.zeros((4, 4), np.float32)
binding = session.io_binding()
binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))


def after_overwriting(buffer, array):
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(array))
    buffer[:] = 5
    session.run_with_iobinding(binding)
    return -float(y[0, 0])


whole, wide = np.ones((4, 4), np.float32), np.ones((4, 8), np.float32)
of_whole, of_slice = after_overwriting(whole, whole), after_overwriting(wide, wide[:, :4])
numpy_shares = np.shares_memory(binding.get_outputs()[0].numpy(), y)
copy_shares = np.shares_memory(binding.copy_outputs_to_cpu()[0], y)
print("onnxruntime", ort.__version__, "- arrays of ones are bound, then overwritten with fives")
print(f"the run reads {of_whole} from a whole array, {of_slice} from a slice")
print(f"shares the bound output's memory: numpy() {numpy_shares}, copy_outputs_to_cpu() {copy_shares}")
sys.exit(0 if (of_whole, of_slice, numpy_shares, copy_shares) == (5.0, 1.0, True, False) else 1)
PY
