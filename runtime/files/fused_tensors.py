"""Tensors of Hugging Face folders in which the projections of all experts of a layer lie, and one projection of them.

Source: transformers, modeling_gpt_oss.py, modeling_granitemoe.py and, for MXFP4, integrations/mxfp4.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .safetensors_file import SafeTensor
from .stacked_tensor import one_of

_FP4 = np.array([sign * x for sign in (1, -1) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class FusedTensor:
    """Floats of all experts: a matrix or a vector of each. rows: which outputs; turned: they are the last axis."""

    name: str
    stored: SafeTensor
    rows: slice
    turned: bool = False

    @property
    def type_name(self) -> str:
        return self.stored.type_name

    @property
    def shape(self) -> tuple[int, ...]:
        n, *inner = self.stored.shape
        outputs, *inputs = inner[::-1] if self.turned else inner
        return (n, len(range(outputs)[self.rows]), *inputs)

    def member(self, i: int) -> FusedMember:
        return FusedMember(self, i)

    def values(self) -> npt.NDArray[np.float32]:
        return np.stack([self.member(i).values() for i in range(self.shape[0])])


@dataclass(frozen=True, slots=True)
class FusedMember:
    """The floats of one expert."""

    whole: FusedTensor
    index: int

    @property
    def name(self) -> str:
        return f"{self.whole.name}[{self.index}]"

    @property
    def type_name(self) -> str:
        return self.whole.type_name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[1:]

    def values(self) -> npt.NDArray[np.float32]:
        found = one_of(self.whole.stored, self.index).values()
        return np.ascontiguousarray((found.T if self.whole.turned else found)[self.whole.rows])


@dataclass(frozen=True, slots=True)
class Mxfp4Tensor:
    """Matrices of all experts in MXFP4. blocks: (experts, outputs, n_blocks, 16) bytes of two numbers each; scales:
    (experts, outputs, n_blocks), powers of two with 127 for 1. rows: which outputs."""

    name: str
    blocks: SafeTensor
    scales: SafeTensor
    rows: slice

    @property
    def type_name(self) -> str:
        return "MXFP4"

    @property
    def shape(self) -> tuple[int, ...]:
        n, outputs, n_blocks, size = self.blocks.shape
        return (n, len(range(outputs)[self.rows]), 2 * n_blocks * size)

    def member(self, i: int) -> Mxfp4Matrix:
        return Mxfp4Matrix(self, i)

    def values(self) -> npt.NDArray[np.float32]:
        return np.stack([self.member(i).values() for i in range(self.shape[0])])


@dataclass(frozen=True, slots=True)
class Mxfp4Matrix:
    """The matrix of one expert in MXFP4."""

    whole: Mxfp4Tensor
    index: int

    @property
    def name(self) -> str:
        return f"{self.whole.name}[{self.index}]"

    @property
    def type_name(self) -> str:
        return "MXFP4"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[1:]

    def nibbles(self) -> npt.NDArray[np.uint8]:
        """(outputs, n_blocks, block), below 16: a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4 and 6."""
        data = self.whole.blocks.array()[self.index, self.whole.rows]
        return np.stack([data & np.uint8(0x0F), data >> np.uint8(4)], axis=-1).reshape(*data.shape[:2], -1)

    def exponents(self) -> npt.NDArray[np.uint8]:
        """(outputs, n_blocks), 127 for 1."""
        return np.ascontiguousarray(self.whole.scales.array()[self.index, self.whole.rows])

    def values(self) -> npt.NDArray[np.float32]:
        powers = self.exponents().astype(np.int32) - 127
        return np.ldexp(_FP4[self.nibbles()], powers[..., None]).astype(np.float32).reshape(self.shape)
