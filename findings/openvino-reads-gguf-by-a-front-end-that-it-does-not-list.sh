#!/usr/bin/env bash
# The plain openvino package reads GGUF files by a front end that it neither lists nor tries.
#
# Expected: read_model("model.gguf") raises an error, and GGUF is not among the front ends that are listed; so the
#   openvino package cannot read GGUF, and openvino_genai's pipeline is the only way.
# Instead: asked for by its name, a front end "gguf" loads the file and converts it: a graph with explicit caches,
#   positions and mask, without openvino_genai and without torch.
# Versions: openvino 2026.4.1, gguf 0.19.0.
# Matters to: who wants OpenVINO to run the file that a user already has.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4
#   read_model: Unable to read the model: "model.gguf"
#   listed: ir jax onnx paddle pytorch tf tflite
#   the front end 'gguf' gives a graph with the inputs cache_k_l0 cache_v_l0 inp_kv_idx inp_out_ids inp_pos
#     inp_tokens self_kq_mask token_len_per_seq
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet openvino==2026.4.1 \
    openvino-telemetry==2025.2.0 gguf==0.19.0 numpy==2.4.6 || exit 2
cd "$folder"
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys

import gguf
import numpy as np
import openvino
from openvino.frontend import FrontEndManager

rng = np.random.default_rng(0)
width, wide, words = 64, 128, ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_context_length(128)
writer.add_embedding_length(width)
writer.add_block_count(1)
writer.add_feed_forward_length(wide)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(16)
writer.add_rope_freq_base(10000.0)
writer.add_vocab_size(len(words))
writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
writer.add_tokenizer_model("llama")
writer.add_token_list(words)
writer.add_token_scores([0.0] * len(words))
writer.add_token_types([2, 3, 3] + [6] * 256)
matrices = {"token_embd": (len(words), width), "output": (len(words), width)}
matrices |= {f"blk.0.attn_{name}": (rows, width) for name, rows in (("q", 64), ("k", 32), ("v", 32), ("output", 64))}
matrices |= {"blk.0.ffn_gate": (wide, width), "blk.0.ffn_up": (wide, width), "blk.0.ffn_down": (width, wide)}
for name, shape in matrices.items():
    writer.add_tensor(f"{name}.weight", (rng.standard_normal(shape) / 8).astype(np.float16))
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

print("openvino", openvino.__version__)
try:
    openvino.Core().read_model("model.gguf")
    refused = False
except RuntimeError as error:
    refused = True
    print(
        "read_model:", next(line for line in str(error).splitlines() if "Unable" in line).split(".gguf")[0] + '.gguf"'
    )
listed = sorted(FrontEndManager().get_available_front_ends())
print("listed:", *listed)
front_end = FrontEndManager().load_by_framework("gguf")
model = front_end.convert(front_end.load("model.gguf"))
inputs = sorted(port.any_name for port in model.inputs)
print("the front end 'gguf' gives a graph with the inputs", *inputs)
sys.exit(0 if refused and "gguf" not in listed and "inp_tokens" in inputs else 1)
PY
