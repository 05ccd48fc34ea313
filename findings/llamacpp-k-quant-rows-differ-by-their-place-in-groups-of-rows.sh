#!/usr/bin/env bash
# In llama.cpp a row of a Q4_K model has other bits where it does not fill a group of four rows.
#
# Expected: a kernel for one row and a kernel for many: a token decoded alone has other last bits than one in a wider
#   step, and wider steps agree with each other.
# Instead: the kernels of repacked weights take rows by fours and the rest one by one. So steps of 1, 2 and 3 agree
#   with each other; steps of 4, 8, 12 and 16 agree with each other and with none of the former; in a step of 5 to 7
#   the first four rows have the bits of a step of 4, and the rest the bits of a token alone. Which bits a token gets
#   depends on its place in the step.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0; one thread, flash attention on.
# Matters to: who promises that a drafted token is judged as a plain one is: a step of one and one of four never
#   agree, and in a draft of four (five rows) the last row has other bits than the first ones. Files in Q4_K_M are
#   what most people run.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36 - 48 tokens in steps of so many
#   bits of steps of one: [1, 2, 3] - bits of steps of four: [4, 8, 12, 16] - nothing in common: True
#   steps whose first four rows have the bits of a step of four, and the others those of a token alone: [5, 6, 7]
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
        blocks = rng.integers(
            0, 256, (n, 144), dtype=np.uint8
        )  # one block of 256 a row: two f16 scales, 12 bytes of scales, codes
        blocks[:, :4] = (rng.uniform(0.5, 1, (n, 2)) * [0.001, 0.004]).astype(np.float16).view(np.uint8)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write_model()
model = llama_cpp.llama_model_load_from_file(b"model.gguf", llama_cpp.llama_model_default_params())
tokens = rng.integers(0, words, 48)


def logits(step):
    """Logits of all tokens, decoded in steps of so many."""
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_threads = parameters.n_threads_batch = 1
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


by_step = {step: logits(step) for step in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)}
place = np.arange(len(tokens))


def same(step, other, rows=slice(None)):
    return bool((by_step[step] == by_step[other])[rows].all())


def none_same(step, other, rows=slice(None)):
    return bool((by_step[step] != by_step[other])[rows].any(axis=1).all())


narrow = [step for step in by_step if same(step, 1)]
full = [step for step in by_step if same(step, 4)]
print("llama-cpp-python", llama_cpp.__version__, "- 48 tokens in steps of so many")
print("bits of steps of one:", narrow, "- bits of steps of four:", full, "- nothing in common:", none_same(1, 4))
mixed = {}
for step in (5, 6, 7):
    in_four, rest = place % step < 4, place % step >= 4
    whole = place < len(tokens) // step * step  # the last, shorter step has groups of its own
    mixed[step] = same(step, 4, in_four & whole) and same(step, 1, rest & whole) and none_same(step, 4, rest & whole)
print(
    "steps whose first four rows have the bits of a step of four, and the others those of a token alone:",
    [s for s in mixed if mixed[s]],
)
sys.exit(0 if narrow == [1, 2, 3] and full == [4, 8, 12, 16] and none_same(1, 4) and all(mixed.values()) else 1)
PY
