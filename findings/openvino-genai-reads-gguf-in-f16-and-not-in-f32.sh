#!/usr/bin/env bash
# openvino_genai reads a GGUF file in F16 or Q8_0 and refuses the same one in F32 or BF16.
#
# Expected: who unpacks block-quantized types reads the plainest one, F32, too.
# Instead: "Unsupported quantization type". The file that converters make by default of a small test model, or that
#   keeps a model as it is, is the one that is not read. What counts here is reading: the IR that is saved when a file
#   has been read.
# Versions: openvino-genai and openvino-tokenizers 2026.4.1.0, openvino 2026.4.1, gguf 0.19.0.
# Matters to: who tests a runtime with tiny unquantized files, or offers openvino_genai for "any GGUF file".
# Output of 2026-11-30:
#   openvino_genai 2026.4.1.0-3408-ab01d1771e4
#   F16: read
#   Q8_0: read
#   F32: not read: Unsupported quantization type
#   BF16: not read: Unsupported quantization type
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 openvino==2026.4.1 \
    openvino-telemetry==2025.2.0 gguf==0.19.0 numpy==2.4.6 || exit 2
cd "$folder"
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys
from pathlib import Path

import gguf
import numpy as np
import openvino_genai

width, wide = 256, 512
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
characters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]


def write(path, kind, file_type):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(257)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*characters, "ab"])
    writer.add_token_types([1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    matrices = {"token_embd": (257, width), "output": (257, width)}
    matrices |= {
        f"blk.0.attn_{name}": (rows, width) for name, rows in (("q", 256), ("k", 128), ("v", 128), ("output", 256))
    }
    matrices |= {"blk.0.ffn_gate": (wide, width), "blk.0.ffn_up": (wide, width), "blk.0.ffn_down": (width, wide)}
    for name, shape in matrices.items():
        array = (rng.standard_normal(shape) / 16).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(array, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(name, file_type):
    folder = Path(name)
    folder.mkdir()
    write(folder / "model.gguf", gguf.GGMLQuantizationType[name], file_type)
    reason = ""
    try:
        openvino_genai.LLMPipeline(folder / "model.gguf", "CPU", enable_save_ov_model=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
    if (folder / "openvino_model.xml").exists():
        return "read"
    return f"not read: {reason}"


print("openvino_genai", openvino_genai.__version__)
kinds = gguf.LlamaFileType
types = {"F16": kinds.MOSTLY_F16, "Q8_0": kinds.MOSTLY_Q8_0, "F32": kinds.ALL_F32, "BF16": kinds.MOSTLY_BF16}
found = {name: read(name, file_type) for name, file_type in types.items()}
for name, result in found.items():
    print(f"{name}: {result}")
unsupported = ["Unsupported quantization type" in found[name] for name in ("F32", "BF16")]
sys.exit(0 if found["F16"] == found["Q8_0"] == "read" and all(unsupported) else 1)
PY
