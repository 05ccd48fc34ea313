#!/usr/bin/env bash
# With flash attention llama.cpp gives the same bits for a key-value cache in f32 as for one in f16.
#
# Expected: a cache in f32 costs twice the memory and is exact; the default of f16 costs some accuracy.
# Instead: with flash attention on the CPU, keys and values in f32 are rounded to f16 on the way in, so both caches
#   give the same logits bit for bit, and the larger one buys nothing. With flash attention off f32 is exact to its
#   last bits, and even f16 is nearer than it is with flash attention, which also sums in f16.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0; weights in f32.
# Matters to: who asks for f32 to have a reference, or to find out what a cache type costs. "auto" switches flash
#   attention on.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36 - relative difference to an f32 cache without flash attention
#   flash attention on: f32 1.3e-03, f16 1.3e-03, the same bits: True; off: f16 5.4e-04
#   f32 with the default, auto, is as with flash attention on: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF" # for any AVX2
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 \
    numpy==2.4.6 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ctypes
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
tokens = rng.integers(0, words, 64)


def logits(kind, flash, step=8):
    """Logits of all tokens, decoded in steps of so many."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.flash_attn_type = flash
    parameters.type_k = parameters.type_v = kind
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    found = []
    for start in range(0, len(tokens), step):
        piece = tokens[start : start + step]
        batch.n_tokens = len(piece)
        for i, token in enumerate(piece):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), start + i, 1, 1
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        found += [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (words,)).copy()
            for i in range(len(piece))
        ]
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return np.array(found)


F32, F16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16
exact = logits(F32, 0)


def error(y):
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


long_form, short_form, off, auto = logits(F32, 1), logits(F16, 1), logits(F16, 0), logits(F32, -1)
same, as_auto = np.array_equal(long_form, short_form), np.array_equal(long_form, auto)
print("llama-cpp-python", llama_cpp.__version__, "- relative difference to an f32 cache without flash attention")
print(
    f"flash attention on: f32 {error(long_form):.1e}, f16 {error(short_form):.1e}, the same bits: {same}; "
    f"off: f16 {error(off):.1e}"
)
print(f"f32 with the default, auto, is as with flash attention on: {as_auto}")
sys.exit(0 if same and as_auto and error(long_form) > error(off) > 1e-6 else 1)
PY
