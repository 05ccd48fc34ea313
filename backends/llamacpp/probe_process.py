"""Run as a process: computes with a tiny quantized model, and either prints one JSON object or dies of it.

python -m pilotfish.backends.llamacpp.probe_process repacked|plain FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from ...runtime.interfaces import ModelInfo
from .context import Context, ContextOptions
from .library import library
from .placement import Placement, load_model, parse_options
from .probe import REPACKED

_TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")  # one for each layer; those with kernels of their own
_SCALES_AT = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_SIZE, _HEADS, _KV_HEADS, _VOCABULARY = 256, 8, 2, 512  # rows of K-quants have multiples of 256 columns
_WIDTHS = (16, 1, 8, 64)


def main(mode: str, folder: Path) -> None:
    path = write_model(folder / "trial.gguf")
    place = Placement("cpu", parse_options({}))
    handle = load_model(path, "llama", _VOCABULARY, place, use_mmap=True, extra_buffers=mode == REPACKED)
    head_dim = _SIZE // _HEADS
    info = ModelInfo(
        "llama", _VOCABULARY, 256, len(_TYPES), _HEADS, _KV_HEADS, head_dim, _SIZE, "llamacpp", "", "cpu", 2, ""
    )
    context = Context(handle, info, ContextOptions(2, "f16", "f16", True, False, entry_bytes=0), 256)
    start = 0
    for width in _WIDTHS:
        tokens = np.arange(width) % _VOCABULARY
        context.decode(tokens, np.arange(start, start + width), width, None, False)
        if not np.isfinite(context.logits(width, width)).all():
            raise SystemExit("the results are no numbers")
        start += width
    print(json.dumps({"system_info": library().llama_print_system_info().decode()}))


def write_model(path: Path) -> Path:
    """A decoder of random quantized weights, each layer of another type, without a vocabulary."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(_SIZE)
    writer.add_feed_forward_length(_SIZE)
    writer.add_block_count(len(_TYPES))
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    writer.add_tensor("token_embd.weight", rng.normal(0, 1, (_VOCABULARY, _SIZE)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(_SIZE, dtype=np.float32))
    key_rows = _SIZE // _HEADS * _KV_HEADS
    rows = {"attn_k": key_rows, "attn_v": key_rows}
    for layer, kind in enumerate(_TYPES):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(_SIZE, dtype=np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            blocks = _random_blocks(kind, rows.get(name, _SIZE), rng)
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random_blocks(kind: str, rows: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Random bits but for the scales of each block, which are small numbers: (rows, bytes per row)."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    raw = rng.integers(0, 256, (rows, _SIZE // block, size), dtype=np.uint8)
    for at in _SCALES_AT[kind]:
        raw[..., at : at + 2] = np.array([2.0**-12], dtype="<f2").view(np.uint8)
    return raw.reshape(rows, -1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
