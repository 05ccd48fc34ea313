#!/usr/bin/env bash
# In llama.cpp the name of a pre-tokenizer decides whether prompts begin with BOS and whether merges count.
#
# Expected: tokenizer.ggml.pre names the expression that cuts a text into words. Where a byte-level BPE file does not
#   say add_bos_token, no BOS is added (GPT-2's rule; Llama 3 is the known exception), and a token that no merge leads
#   to never comes out.
# Instead: with the names tekken, pixtral, lfm2 and falcon3 BOS is added as it is with llama-bpe, and a word that is a
#   token is taken whole, merges or not. chameleon adds BOS and keeps to merges; llama4, gpt-4o, qwen2 and others do
#   neither. All else in the files is equal.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0.
# Matters to: every other runtime that opens the same file and wants the same tokens: one that knows Llama 3 alone
#   starts Mistral Nemo's and LFM2's prompts one token short.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36
#   abc is ab c with gpt-2 qwen2 gpt-4o llama4 command-r
#   abc is <bos> abc with llama-bpe tekken pixtral lfm2 falcon3
#   abc is <bos> ab c with chameleon
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
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
characters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]


def tokens(pre, text):
    """Tokens of the text by their names. "ab" is a token with a merge, "abc" one without."""
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    names = [*characters, "ab", "abc", "<bos>"]
    writer.add_token_list(names)
    writer.add_token_types([1] * 258 + [3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(258)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(b"model.gguf", parameters)
    vocabulary, room = llama_cpp.llama_model_get_vocab(model), (llama_cpp.llama_token * 16)()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), room, 16, True, False)
    return [names[token] for token in room[:count]]


expected = dict.fromkeys(("gpt-2", "qwen2", "gpt-4o", "llama4", "command-r"), ["ab", "c"])
expected |= dict.fromkeys(("llama-bpe", "tekken", "pixtral", "lfm2", "falcon3"), ["<bos>", "abc"])
expected["chameleon"] = ["<bos>", "ab", "c"]
found = {pre: tokens(pre, b"abc") for pre in expected}
print("llama-cpp-python", llama_cpp.__version__)
for names in (["ab", "c"], ["<bos>", "abc"], ["<bos>", "ab", "c"]):
    print("abc is", *names, "with", *(pre for pre in found if found[pre] == names))
sys.exit(0 if found == expected else 1)
PY
