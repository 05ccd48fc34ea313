#!/usr/bin/env bash
# llama.cpp makes end tokens, without text, of ordinary tokens that are spelled like known ones.
#
# Expected: which tokens end an answer is what the file says: eos, eot. A token of type NORMAL is text.
# Instead: "<|im_end|>", "<end_of_turn>", "<EOT>" and some more end an answer wherever they stand in a vocabulary,
#   whatever their type and whatever the file says about ends. Their type becomes CONTROL, so that they decode to
#   nothing, too. An end token of the file's own that is typed NORMAL, beside them, keeps its type and its text.
# Versions: llama.cpp of llama-cpp-python 0.3.36, gguf 0.19.0.
# Matters to: other runtimes that open the same file: one that believes the file goes on where llama.cpp stops, and
#   prints the token.
# Output of 2026-11-30:
#   llama-cpp-python 0.3.36 - all tokens are NORMAL, the file's eos is <my_end>
#   <|im_end|>: ends an answer True, control True, text ''
#   <end_of_turn>: ends an answer True, control True, text ''
#   <EOT>: ends an answer True, control True, text ''
#   <my_end>: ends an answer True, control False, text '<my_end>'
#   <other>: ends an answer False, control False, text '<other>'
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
ends = ["<|im_end|>", "<end_of_turn>", "<EOT>", "<my_end>", "<other>"]
writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_context_length(128)
writer.add_embedding_length(64)
writer.add_block_count(1)
writer.add_feed_forward_length(64)
writer.add_head_count(4)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([*characters, *ends])
writer.add_token_types([gguf.TokenType.NORMAL] * (256 + len(ends)))
writer.add_token_merges(["a b"])
writer.add_eos_token_id(256 + ends.index("<my_end>"))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()
parameters = llama_cpp.llama_model_default_params()
parameters.vocab_only = True
vocabulary = llama_cpp.llama_model_get_vocab(llama_cpp.llama_model_load_from_file(b"model.gguf", parameters))
print("llama-cpp-python", llama_cpp.__version__, "- all tokens are NORMAL, the file's eos is <my_end>")
found = {}
for token, name in enumerate(ends, 256):
    room = ctypes.create_string_buffer(32)
    count = llama_cpp.llama_token_to_piece(vocabulary, token, room, 32, 0, False)
    found[name] = (
        bool(llama_cpp.llama_vocab_is_eog(vocabulary, token)),
        bool(llama_cpp.llama_vocab_is_control(vocabulary, token)),
        room.raw[:count].decode(),
    )
    print("{}: ends an answer {}, control {}, text {!r}".format(name, *found[name]))
known = [(True, True, "")] * 3
sys.exit(0 if list(found.values()) == [*known, (True, False, "<my_end>"), (False, False, "<other>")] else 1)
PY
