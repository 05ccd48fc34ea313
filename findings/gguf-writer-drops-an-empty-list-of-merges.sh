#!/usr/bin/env bash
# GGUFWriter drops an empty list of merges, and llama.cpp refuses the file.
#
# Expected: add_token_merges([]) writes an array of length 0. A byte-level tokenizer that merges nothing is an
#   ordinary one: every byte is a token.
# Instead: the writer leaves the key out without a word, and llama.cpp refuses the file: "cannot find tokenizer merges
#   in model file". With one merge more, of two tokens that cannot be merged because their sum is no token, it loads.
# Versions: gguf 0.19.0, llama.cpp of llama-cpp-python 0.3.36.
# Matters to: exporters of models that read bytes, and to who writes tiny files for tests.
# Output of 2026-11-30:
#   gguf 0.19.0 llama-cpp-python 0.3.36
#   no merges: in the file False, llama.cpp opens it False (llama_model_load: error loading model: error loading
#     model vocabulary: cannot find tokenizer merges in model file)
#   one that cannot happen: in the file True, llama.cpp opens it True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF" # for any AVX2
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ctypes
import importlib.metadata
import sys

import gguf
import llama_cpp

lines = []
log = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text.decode(errors="replace")))
llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
characters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]


def opens(merges):
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(characters)
    writer.add_token_types([1] * 256)
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    written = "tokenizer.ggml.merges" in gguf.GGUFReader("model.gguf").fields
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    return written, bool(llama_cpp.llama_model_load_from_file(b"model.gguf", parameters))


empty, said = opens([]), next((line.strip() for line in lines if "merges" in line), "")
one = opens(["a b"])
print("gguf", importlib.metadata.version("gguf"), "llama-cpp-python", llama_cpp.__version__)
print(f"no merges: in the file {empty[0]}, llama.cpp opens it {empty[1]} ({said})")
print(f"one that cannot happen: in the file {one[0]}, llama.cpp opens it {one[1]}")
sys.exit(0 if empty == (False, False) and one == (True, True) else 1)
PY
