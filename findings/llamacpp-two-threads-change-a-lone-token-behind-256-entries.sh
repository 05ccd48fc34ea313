#!/usr/bin/env bash
# In llama.cpp the number of threads changes the bits of a token that is decoded alone, once 256 entries are cached.
#
# Expected: on the CPU the number of threads moves work about and no bits; and with quantized weights and flash
#   attention a token has the same logits alone as in a wider step, at any length.
# Instead: up to 256 cached entries all agree. Behind more, attention of a lone token is cut into a piece for each
#   thread, so that with two threads it has other bits than with one, and other ones than in a step of eight, which
#   does not change.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0; weights in Q4_0, cache in f16 (the default).
# Matters to: who expects the same text on another number of cores, promises equal bits for drafted and plain steps,
#   or tests that with one thread or a short prompt.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36 - 400 tokens, flash attention on
#   alone, one thread against two: 144 tokens differ, the first behind 256 others
#   one thread, alone as in steps of eight: True; steps of eight, one thread as two: True
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
        weight = (rng.standard_normal((n, width)) / 16).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(f"{name}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write_model()
model = llama_cpp.llama_model_load_from_file(b"model.gguf", llama_cpp.llama_model_default_params())
tokens = rng.integers(0, words, 400)


def logits(step, threads):
    """Logits of all tokens, decoded in steps of so many."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = 1
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


alone, alone_by_two, eight, eight_by_two = (logits(step, threads) for step in (1, 8) for threads in (1, 2))
other = np.flatnonzero((alone != alone_by_two).any(axis=1))
print("llama-cpp-python", llama_cpp.__version__, "- 400 tokens, flash attention on")
print(f"alone, one thread against two: {len(other)} tokens differ, the first behind {min(other, default=None)} others")
same = [np.array_equal(alone, eight), np.array_equal(eight, eight_by_two)]
print(f"one thread, alone as in steps of eight: {same[0]}; steps of eight, one thread as two: {same[1]}")
sys.exit(0 if len(other) and other[0] == 256 and all(same) else 1)
PY
