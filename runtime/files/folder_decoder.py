"""The decoder in a Hugging Face folder, as decoder_shape() reads it: metadata, and tensors by their GGUF names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, UnsupportedModelError
from .decoder_file import StoredTensor
from .folder_blocks import PARTS, packed_tensor, packing_of
from .folder_experts import expert_names, gathered, is_mixture
from .folder_files import text_name, weight_files
from .folder_metadata import metadata_of
from .folder_names import TensorNames
from .folder_settings import Settings
from .safetensors_file import SafeTensor, read_safetensors

_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class ShiftedTensor:
    """Floats of a folder whose GGUF file holds them larger by an offset."""

    stored: SafeTensor
    offset: float

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def type_name(self) -> str:
        return self.stored.type_name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def values(self) -> npt.NDArray[np.float32]:
        return self.stored.values() + np.float32(self.offset)


@dataclass(frozen=True, slots=True)
class MadeTensor:
    """A tensor that GGUF files hold and that a folder's settings say."""

    name: str
    numbers: npt.NDArray[np.float32]
    type_name: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def values(self) -> npt.NDArray[np.float32]:
        return self.numbers


@dataclass(frozen=True, slots=True)
class FolderDecoder:
    """A DecoderFile. files: those that hold its weights."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, StoredTensor]
    architecture: str
    files: tuple[Path, ...]
    names: TensorNames = field(repr=False)
    in_halves: bool = True

    @property
    def described_by(self) -> str:
        return "config.json"

    def called(self, tensor: str) -> str:
        return self.names.transformers(tensor) or tensor


def read_folder_decoder(path: Path, settings: Mapping[str, Any]) -> FolderDecoder:
    """The decoder in a folder, its weights mapped and not copied. settings: of its config.json.

    Raises ModelNotFoundError, OptionError where two models lie there, ModelFileError for what contradicts itself, and
    UnsupportedModelError for what is not built.
    """
    s = Settings(settings, path)
    metadata, factors = metadata_of(s)
    files = weight_files(path)
    stored: dict[str, SafeTensor] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            own = text_name(name)
            if own in stored:
                raise ModelFileError(
                    f"{path} holds the tensor {name} twice. Remove the files that do not belong to it."
                )
            if own is not None:
                stored[own] = tensor
    if s.get("tie_word_embeddings") is True:
        stored.pop(_HEAD, None)
    elif s.get("tie_word_embeddings") is False and _HEAD not in stored and "lm_head.qweight" not in stored:
        raise ModelFileError(f"{path} has no tensor {_HEAD}. Fetch or copy the model again.")
    names, found = _names(s), _assembled(s, stored)
    tensors = dict(_placed(s, names, gathered(s, found) if is_mixture(s) else found))
    tensors |= {name: MadeTensor(name, numbers) for name, numbers in factors.items()}
    _check_vocabulary(s, tensors)
    return FolderDecoder(path, metadata, tensors, s.architecture, tuple(files), names)


def _names(s: Settings) -> TensorNames:
    f = s.family
    more = expert_names(s.kind) if is_mixture(s) else {}
    return TensorNames(
        packed=f.packed, norms_after=f.norms_after, norms_before=f.norms_before, mlp_norm=f.mlp_norm, more=more
    )


def _assembled(s: Settings, stored: Mapping[str, SafeTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors by their names, those that a quantized matrix consists of as one."""
    packing = packing_of(s.all, s.path)
    parts: dict[str, dict[str, SafeTensor]] = {}
    for name, tensor in stored.items():
        stem, _, part = name.rpartition(".")
        if packing is not None and part in PARTS:
            parts.setdefault(stem, {})[part] = tensor
        else:
            yield name, tensor
    for stem, found in parts.items():
        assert packing is not None
        yield f"{stem}.weight", packed_tensor(stem, found, packing, s.path)


def _placed(
    s: Settings, names: TensorNames, found: Iterator[tuple[str, StoredTensor]]
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors by their GGUF names. Raises UnsupportedModelError for one that has no place there."""
    for name, tensor in found:
        own = names.gguf(name)
        inner = "" if own is None else own.removesuffix(".bias").rpartition(".")[2]
        if name.endswith(".bias") and inner not in s.family.biased:
            if not tensor.values().any():  # which quantizers write whatever the family
                continue
            own = None
        if own is None:
            raise UnsupportedModelError(f"{s.path} has the tensor {name}, which a {s.kind} as built here would ignore.")
        if s.folder.norm_offset and "norm" in name and isinstance(tensor, SafeTensor):
            tensor = ShiftedTensor(tensor, s.folder.norm_offset)
        yield own, tensor


def _check_vocabulary(s: Settings, tensors: Mapping[str, StoredTensor]) -> None:
    table, said = tensors.get("token_embd.weight"), s.need("vocab_size", int)
    if table is None or len(table.shape) != 2:
        raise ModelFileError(f"{s.path} has no tensor {_TABLE} of rows and columns. Fetch or copy the model again.")
    if table.shape[0] != said:
        raise ModelFileError(
            f"{s.path} contradicts itself: config.json says vocab_size = {said}, and {_TABLE} has "
            f"{table.shape[0]} rows."
        )
