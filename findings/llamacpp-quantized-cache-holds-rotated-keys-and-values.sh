#!/usr/bin/env bash
# llama.cpp's quantized key-value cache holds keys and values turned by a Hadamard matrix, and its saved state does,
# too.
#
# Expected: the state of a sequence with a q8_0 cache holds the keys and values of the f16 cache, rounded to 8 bits:
#   dequantized they are within a percent.
# Instead: they are as far from those as random ones, though every vector is as long. Both are multiplied by an
#   orthogonal matrix in blocks before they are rounded, which the attention undoes. Nothing in the state says so;
#   LLAMA_ATTN_ROT_DISABLE=1 in the environment switches it off.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0; heads of 64.
# Matters to: who reads keys out of a saved state, to choose entries or to move them to another engine.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36 - relative difference of the q8_0 cache to the f16 one
#   keys: 1.40, of the vectors' lengths 1e-03; with LLAMA_ATTN_ROT_DISABLE=1 0.005
#   values: 1.47, of the vectors' lengths 7e-04; with LLAMA_ATTN_ROT_DISABLE=1 0.005
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF" # for any AVX2
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ctypes
import os
import struct
import sys

import gguf
import llama_cpp
import numpy as np

log = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
rng = np.random.default_rng(0)
width, words = 256, 256


def write_model():
    """A llama of two layers with random weights, heads of 64 and no tokenizer."""
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("no_vocab")
    rows = {"token_embd": words, "output": words}
    for layer in ("blk.0", "blk.1"):
        rows |= {f"{layer}.attn_{name}": n for name, n in (("q", 256), ("k", 128), ("v", 128), ("output", 256))}
        rows |= {f"{layer}.ffn_{name}": width for name in ("gate", "up", "down")}
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{layer}.{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name, n in rows.items():
        writer.add_tensor(f"{name}.weight", (rng.standard_normal((n, width)) / 16).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write_model()
model = llama_cpp.llama_model_load_from_file(b"model.gguf", llama_cpp.llama_model_default_params())
tokens = rng.integers(0, words, 8)


def keys_and_values(kind):
    """Keys and values of the first layer, out of the saved state, which has type, row size and rows of each."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = 256
    parameters.flash_attn_type = 1
    parameters.type_k = parameters.type_v = kind
    context = llama_cpp.llama_init_from_model(model, parameters)
    array = (llama_cpp.llama_token * len(tokens))(*map(int, tokens))
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
    room = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size(context, 0))()
    llama_cpp.llama_state_seq_get_data(context, room, len(room), 0)
    llama_cpp.llama_free(context)
    state, found, place = bytes(room), [], 0
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    row = 128 // per_block * block_bytes
    for layer in range(4):  # keys of both layers, then values of both
        place = state.index(struct.pack("<iQ", kind, row), place) + 12
        rows = np.frombuffer(state, np.uint8, len(tokens) * row, place).reshape(len(tokens), row)
        found.append(gguf.dequantize(rows.view(np.float16) if kind == gguf.GGMLQuantizationType.F16 else rows, kind))
        place += rows.size
    return found[0], found[2]


def difference(plain, other):
    return np.linalg.norm(plain - other) / np.linalg.norm(plain)


f16, q8_0 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0
plain, turned = keys_and_values(f16), keys_and_values(q8_0)
os.environ["LLAMA_ATTN_ROT_DISABLE"] = "1"
unturned = keys_and_values(q8_0)
print("llama-cpp-python", llama_cpp.__version__, "- relative difference of the q8_0 cache to the f16 one")
far, near = [], []
for i, name in enumerate(("keys", "values")):
    far.append(difference(plain[i], turned[i]))
    near.append(difference(plain[i], unturned[i]))
    lengths = [np.linalg.norm(array.astype(np.float64), axis=1) for array in (plain[i], turned[i])]
    longer = abs(lengths[1] / lengths[0] - 1).max()
    print(f"{name}: {far[-1]:.2f}, of the vectors' lengths {longer:.0e}; with LLAMA_ATTN_ROT_DISABLE=1 {near[-1]:.3f}")
sys.exit(0 if min(far) > 0.5 and max(near) < 0.02 else 1)
PY
