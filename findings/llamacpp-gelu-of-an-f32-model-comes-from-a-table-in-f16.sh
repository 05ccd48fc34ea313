#!/usr/bin/env bash
# llama.cpp computes GELU of f32 tensors by a table in f16; SiLU and the GELU with erf are exact.
#
# Expected: activations of f32 tensors are exact to f32's last bits on the CPU, whichever the function.
# Instead: GELU (tanh) and quick GELU round their input to f16 and look the answer up in a table of f16: absolute
#   errors of 2e-3 and 4e-3 between -6 and 6. SiLU, sigmoid, tanh and GELU by erf have errors below 1e-6.
# Versions: llama.cpp (ggml) of llama-cpp-python 0.3.36.
# Matters to: who compares an f32 file of a model with GELU (T5, Gemma, GPT-2) with its source: the difference of 1e-3
#   is no fault of the file, and a model with SiLU does not have it.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36 - largest absolute error of f32 tensors, inputs from -6 to 6
#   silu 5e-07, sigmoid 8e-08, tanh 8e-08, gelu_erf 4e-07, gelu 2e-03, gelu_quick 4e-03
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF" # for any AVX2
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 numpy==2.4.6 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ctypes
import math
import sys
from pathlib import Path

import llama_cpp
import numpy as np


class Parameters(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


libraries = Path(llama_cpp.__file__).parent / "lib"
ggml, cpu = (ctypes.CDLL(str(libraries / f"lib{name}.so")) for name in ("ggml-base", "ggml-cpu"))
pointer = ctypes.c_void_p
for name, result, arguments in (
    ("ggml_init", pointer, [Parameters]),
    ("ggml_new_tensor_1d", pointer, [pointer, ctypes.c_int, ctypes.c_int64]),
    ("ggml_new_graph", pointer, [pointer]),
    ("ggml_build_forward_expand", None, [pointer, pointer]),
    ("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), [pointer]),
    ("ggml_free", None, [pointer]),
):
    function = getattr(ggml, name)
    function.restype, function.argtypes = result, arguments
cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]

x = np.linspace(-6, 6, 1001).astype(np.float32)
wide = x.astype(np.float64)
exact = {
    "silu": wide / (1 + np.exp(-wide)),
    "sigmoid": 1 / (1 + np.exp(-wide)),
    "tanh": np.tanh(wide),
    "gelu_erf": 0.5 * wide * (1 + np.array([math.erf(value / math.sqrt(2)) for value in wide])),
    "gelu": 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))),
    "gelu_quick": wide / (1 + np.exp(-1.702 * wide)),
}


def computed(name):
    operator = getattr(ggml, f"ggml_{name}")
    operator.restype, operator.argtypes = pointer, [pointer, pointer]
    context = ggml.ggml_init(Parameters(1 << 24, None, False))
    given = ggml.ggml_new_tensor_1d(context, 0, len(x))  # type 0 is f32
    np.ctypeslib.as_array(ggml.ggml_get_data_f32(given), x.shape)[:] = x
    result = operator(context, given)
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, result)
    cpu.ggml_graph_compute_with_ctx(context, graph, 1)
    y = np.ctypeslib.as_array(ggml.ggml_get_data_f32(result), x.shape).copy()
    ggml.ggml_free(context)
    return y


errors = {name: float(abs(computed(name) - y).max()) for name, y in exact.items()}
print("llama-cpp-python", llama_cpp.__version__, "- largest absolute error of f32 tensors, inputs from -6 to 6")
print(", ".join(f"{name} {error:.0e}" for name, error in errors.items()))
coarse = {name for name, error in errors.items() if error > 1e-4}
sys.exit(0 if coarse == {"gelu", "gelu_quick"} and max(e for n, e in errors.items() if n not in coarse) < 1e-6 else 1)
PY
