#!/usr/bin/env bash
# llama.cpp cuts the same text otherwise when the display name of the model contains "phi-3".
#
# Expected: general.name is for people. How a file's text is tokenized follows from what it says about its tokenizer.
# Instead: where the name contains phi-3 or phi3, special tokens swallow the white space behind them. The file of a
#   fine-tune that is renamed tokenizes its chats otherwise, and "better than phi-3" is read as Phi-3.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0.
# Matters to: who edits names in GGUF files, and to other runtimes that want the same tokens for the same file.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36
#   general.name = 'My model': '<|end|>\na' becomes ['<|end|>', '▁', '<0x0A>', 'a']
#   general.name = 'Phi-3 mini': '<|end|>\na' becomes ['<|end|>', '▁', 'a']
#   general.name = 'better than phi-3': '<|end|>\na' becomes ['<|end|>', '▁', 'a']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF" # for any AVX2
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ctypes
import sys

import gguf
import llama_cpp

log = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "<|end|>", "<|endoftext|>"]


def tokens(name, text):
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_name(name)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * len(names))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1, 1, 3, 3])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(b"model.gguf", parameters)
    vocabulary, room = llama_cpp.llama_model_get_vocab(model), (llama_cpp.llama_token * 16)()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), room, 16, False, True)
    return [names[token] for token in room[:count]]


print("llama-cpp-python", llama_cpp.__version__)
found = {name: tokens(name, b"<|end|>\na") for name in ("My model", "Phi-3 mini", "better than phi-3")}
for name, cut in found.items():
    print(f"general.name = {name!r}: '<|end|>\\na' becomes {cut}")
plain, phi, better = found.values()
sys.exit(0 if "<0x0A>" in plain and "<0x0A>" not in phi and phi == better else 1)
PY
