#!/usr/bin/env bash
# OpenVINO's GGUF front end accepts a SmolLM3 file and rotates every layer, also those that have no rotary embeddings.
#
# Expected: every fourth layer is left without rotation, as the architecture's name says to every reader, or the file is
#   refused.
# Instead: the graph has operation for operation what that of a Llama of the same sizes has, and nothing is said. Answers
#   are fluent and wrong.
# Versions: openvino 2026.4.1, gguf 0.19.0. What the layers should be: llama.cpp, src/models/smollm3.cpp
#   (no_rope_layer_step 4); transformers, SmolLM3Config.no_rope_layers.
# Matters to: who opens such files on OpenVINO, and who takes "converts" for "computes the same".
# Output of 2026-11-30:
#   openvino 2026.4.1: operations of a llama's graph: 621, of them Multiply 54, Split 8, Concat 8
#   smollm3: the same operations: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet openvino==2026.4.1 gguf==0.19.0 numpy==2.4.6 || exit 2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import collections
import sys

import gguf
import numpy as np
import openvino
from openvino.frontend import FrontEndManager

WIDTH, WORDS, LAYERS = 64, 256, 4
rng = np.random.default_rng(0)


def operations(architecture):
    """How many operations of each kind OpenVINO's graph of a small random file has."""
    writer = gguf.GGUFWriter("model.gguf", architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([chr(0x100 + i) for i in range(WORDS)])
    writer.add_token_types([1] * WORDS)
    writer.add_token_merges([f"{chr(0x100)} {chr(0x101)}"])
    rows = {"token_embd": WORDS, "output": WORDS}
    for layer in range(LAYERS):
        rows |= {f"blk.{layer}.attn_{name}": n for name, n in (("q", 64), ("k", 32), ("v", 32), ("output", 64))}
        rows |= {f"blk.{layer}.ffn_{name}": WIDTH for name in ("gate", "up", "down")}
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for name, n in rows.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal((n, WIDTH)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = FrontEndManager().load_by_framework("gguf")
    return collections.Counter(x.get_type_name() for x in reader.convert(reader.load("model.gguf")).get_ops())


llama, smollm3 = operations("llama"), operations("smollm3")
counted = ", ".join(f"{kind} {llama[kind]}" for kind in ("Multiply", "Split", "Concat"))
print(f"openvino {openvino.__version__.split('-')[0]}: operations of a llama's graph: {llama.total()}, of them {counted}")
print(f"smollm3: the same operations: {smollm3 == llama}")
sys.exit(0 if smollm3 == llama else 1)
PY
