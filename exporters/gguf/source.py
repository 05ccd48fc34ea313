"""A GGUF file as a source: its tensors dequantized to what transformers calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.files.gguf_file import GgufFile, read_gguf
from ...runtime.files.gguf_parts import gguf_digest
from ...runtime.text.tokenizer import Tokenizer
from ...runtime.text.tokenizer_gguf import tokenizer_from_gguf
from ..sources.families import text_settings
from ..sources.model_source import ModelSource, build_config
from .layout import LAYOUTS, pairs_to_halves
from .settings import settings_of

if TYPE_CHECKING:
    import torch

_ELEMENTS = 1 << 22  # dequantized at once: a large vocabulary's table would be gigabytes of steps in between
_READ_ELSEWHERE = ("rope_freqs.weight",)  # the settings hold what it says


def read_file(path: Path) -> tuple[GgufFile, dict[str, Any], Tokenizer]:
    """A GGUF file, its settings by transformers' names and its tokenizer: all that is read without another package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    file = read_gguf(path)
    return file, text_settings(settings_of(file), path), tokenizer_from_gguf(file.metadata)


def open_gguf(path: Path) -> ModelSource:
    """The model in a GGUF file. Raises ModelNotFoundError, ModelFileError and UnsupportedModelError."""
    file, settings, tokenizer = read_file(path)
    build_config(settings, path)
    template, license_name = file.metadata.get("tokenizer.chat_template"), file.metadata.get("general.license")
    return ModelSource(
        path=path,
        format="gguf",
        sha256=gguf_digest(path),
        model_id=str(file.metadata.get("general.name") or path.stem),
        license=license_name if isinstance(license_name, str) else None,
        architecture=str(settings["model_type"]),
        context_length=int(settings["max_position_embeddings"]),
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else None,
        bos_id=tokenizer.bos_id,
        add_bos=tokenizer.add_bos,
        eos_ids=tokenizer.ordered_eos_ids,
        settings=settings,
        weights=GgufWeights(file, settings),
    )


class GgufWeights:
    """Weights in a GGUF file, dequantized one at a time."""

    def __init__(self, file: GgufFile, settings: Mapping[str, Any]) -> None:
        self._layout = LAYOUTS[settings["model_type"]]
        self._heads = settings["num_attention_heads"], settings["num_key_value_heads"]
        self._tensors = {
            self._layout.hf_name(name) or name: tensor
            for name, tensor in file.tensors.items()
            if name not in _READ_ELSEWHERE
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read_into(self, name: str, target: torch.Tensor) -> None:
        tensor, offset = self._tensors[name], np.float32(self._layout.offset_of(name))
        values = target.detach().numpy()  # the same memory
        n_heads = self._layout.heads_of(name, *self._heads)
        order = np.arange(len(values)) if n_heads is None else pairs_to_halves(len(values), n_heads)
        if len(tensor.shape) == 1:
            values[:] = tensor.values()[order] - offset
            return
        step = max(1, _ELEMENTS // tensor.shape[1])
        for start in range(0, len(values), step):
            rows = order[start : start + step]
            part = replace(tensor, data=tensor.data[rows], shape=(len(rows), tensor.shape[1]))
            values[start : start + step] = part.values() - offset
