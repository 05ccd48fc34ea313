"""Quantizes a GGUF file with the gguf package alone: slower than llama.cpp, and to the plain types only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize

from ...runtime.files.gguf_file import GgufFile, GgufTensor
from ...runtime.progress import Share

_TABLES = ("token_embd.weight", "output.weight")
_WRITTEN_ANEW = ("general.architecture", "general.file_type")
_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}


def requantize(file: GgufFile, out: Path, kind: str, embedding: str, output: str, progress: Share) -> None:
    """Write a copy with matrices of the given types; f16 where a row does not consist of whole blocks."""
    writer = GGUFWriter(out, file.architecture)
    _copy_metadata(file.path, writer)
    writer.add_file_type(_FILE_TYPES[kind])
    tied = "output.weight" not in file.tensors
    tables = {"token_embd.weight": output if tied else embedding, "output.weight": output}
    types = {name: _type_of(tensor, tables.get(name, kind)) for name, tensor in file.tensors.items()}
    for name, tensor in file.tensors.items():
        shape = quant_shape_to_byte_shape(tensor.shape, types[name])
        n_bytes = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), n_bytes, raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for done, (name, tensor) in enumerate(file.tensors.items()):
            writer.write_tensor_data(np.ascontiguousarray(quantize(tensor.values(), types[name])))
            progress((done + 1) / len(types))
    finally:
        writer.close()


def _type_of(tensor: GgufTensor, wanted: str) -> GGMLQuantizationType:
    if len(tensor.shape) == 1 or tensor.name.endswith("attn_rel_b.weight"):  # as llama.cpp has it
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[wanted]
    return GGMLQuantizationType.F16 if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _copy_metadata(path: Path, writer: GGUFWriter) -> None:
    """Every entry with its own type."""
    for name, field in GGUFReader(path).fields.items():
        if name.startswith("GGUF.") or name in _WRITTEN_ANEW:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
