"""A folder of safetensors as a GGUF file, for engines that read such files alone: made once, kept in the cache.

Matrices keep the floats that they are stored in, vectors become f32: no number changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ...runtime.files.bundle import Bundle
from ...runtime.files.decoder_families import FAMILIES
from ...runtime.files.decoder_file import DecoderFile, StoredTensor
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.folder_model import FolderModel
from ...runtime.files.made_bundle import made_once
from ...runtime.files.safetensors_file import SafeTensor
from ...runtime.progress import Progress, Share
from ...runtime.text.tokenizer import Tokenizer
from .entries import add_entry, general_metadata
from .tokenizer import check_with_llama_cpp, tokenizer_metadata

BUILDER = 1  # raised when the file changes, so that older ones are not taken for new ones
_KEPT = {"BF16": gguf.GGMLQuantizationType.BF16, "F16": gguf.GGMLQuantizationType.F16}


@dataclass(frozen=True, slots=True)
class _Spoken:
    """What tokenizer_metadata() asks of a source."""

    tokenizer: Tokenizer
    chat_template: str | None
    model_id: str
    license: str | None
    encoder_decoder: None = None

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def add_bos(self) -> bool:
        return self.tokenizer.add_bos

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.tokenizer.ordered_eos_ids


def import_folder(model: FolderModel, *, progress: Progress | None = None) -> Bundle:
    """The bundle with a GGUF file of a folder: found in the cache, or built.

    Raises ModelFileError, UnsupportedModelError where the format has no place for its tokenizer, and CacheWriteError
    where the disk is full; nothing half-written stays.
    """
    return made_once(model, f"gguf-{BUILDER}", partial(_build, model), progress)


def _build(model: FolderModel, folder: Path, progress: Share) -> dict[str, object]:
    file, path = model.file, folder / "model.gguf"
    spoken = _Spoken(model.tokenizer, model.chat_template, model.model_id, model.license)
    said = tokenizer_metadata(spoken, decoder_shape(file).vocab_size)
    own = {key: value for key, value in file.metadata.items() if key != "general.architecture"}
    writer = gguf.GGUFWriter(path, file.architecture)
    try:
        for key, value in (general_metadata(spoken) | own | said).items():
            add_entry(writer, key, value)
        for name, tensor in file.tensors.items():
            kind = _kind(tensor)
            width = 4 if kind == gguf.GGMLQuantizationType.F32 else 2
            writer.add_tensor_info(name, tensor.shape, np.dtype("u2"), width * int(np.prod(tensor.shape)), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, values in enumerate(_arranged(file)):
            writer.write_tensor_data(values)
            progress((done + 1) / len(file.tensors))
    finally:
        writer.close()
    check_with_llama_cpp(path, model.tokenizer, model.chat_template)
    types = sorted({t.type_name for t in file.tensors.values()})
    return {"formats": {"gguf": "model.gguf"}, "recipe": {"weights": "+".join(types), "builder": str(BUILDER)}}


def _kind(tensor: StoredTensor) -> gguf.GGMLQuantizationType:
    kept = isinstance(tensor, SafeTensor) and len(tensor.shape) > 1
    return _KEPT.get(tensor.type_name, gguf.GGMLQuantizationType.F32) if kept else gguf.GGMLQuantizationType.F32


def _arranged(file: DecoderFile) -> Iterator[npt.NDArray[Any]]:
    """The values of each tensor as the family's GGUF files have them."""
    shape = decoder_shape(file)
    heads = {"attn_q": shape.n_heads, "attn_k": shape.kv_heads} if FAMILIES[file.architecture].pairs else {}
    for name, tensor in file.tensors.items():
        whole = _kind(tensor) == gguf.GGMLQuantizationType.F32
        values = tensor.array() if isinstance(tensor, SafeTensor) and not whole else tensor.values()
        n_heads = heads.get(name.split(".")[-2])
        yield np.ascontiguousarray(values if n_heads is None else values[np.argsort(shape.half_order(n_heads))])
