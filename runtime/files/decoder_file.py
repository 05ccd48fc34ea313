"""What a decoder is read from, whatever it lies in: metadata and tensors by the names that GGUF files give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt


class StoredTensor(Protocol):
    """A tensor as it is stored."""

    @property
    def name(self) -> str:
        """In its file."""

    @property
    def type_name(self) -> str:
        """How its numbers are stored: "F32", "Q4_1", ..."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In numpy's order: (rows, columns)."""

    def values(self) -> npt.NDArray[np.float32]:
        """The tensor in f32, of its shape. Raises UnsupportedModelError for types that are not read here."""


class DecoderFile(Protocol):
    """A model on disk that decoder_shape() describes."""

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> Mapping[str, object]:
        """str, bool, int, float, and lists of them; with the architecture before them: "llama.block_count"."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By the names that GGUF files give them: "blk.0.attn_q.weight"."""

    @property
    def architecture(self) -> str:
        """A name in FAMILIES, for what is known here. Raises ModelFileError where there is none."""

    @property
    def in_halves(self) -> bool:
        """Whether rows of q and k lie in halves even where the family's GGUF files have them in pairs."""

    @property
    def described_by(self) -> str:
        """What says how many layers, heads and numbers there are, in words."""

    def called(self, tensor: str) -> str:
        """The name that this file has, or would have, for a tensor of that GGUF name."""
