"""The weights of an exported graph: which bytes each initializer holds, made one matrix at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..onnx.products import pack, pack_zero_points
from ..quantize.blocks import Blocks, stack
from ..quantize.nearest import quantize
from ..quantize.weight_form import Stored

_BITS = {"int8": 8, "int4": 4}
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Matrix:
    """Parameters of equal columns, one below the other, and how they are stored. A block that does not divide the
    columns becomes the largest that does; where none does, the matrix stays in f32.

    fitted: each parameter in blocks, where they were chosen before; else it is rounded when it is written.
    """

    parameters: tuple[torch.Tensor, ...]
    stored: Stored
    wanted_block: int
    symmetric: bool
    fitted: tuple[Blocks, ...] = field(default=(), compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return sum(p.shape[0] for p in self.parameters), int(self.parameters[0].shape[1])

    @property
    def block(self) -> int:
        """Columns that share a scale."""
        block = self.wanted_block
        while block > _SMALLEST_BLOCK and self.shape[1] % block:
            block //= 2
        return block

    @property
    def bits(self) -> int | None:
        """Of a code; None for floats."""
        return _BITS.get(self.stored) if self.shape[1] % self.block == 0 else None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two matrices the same bytes."""
        return tuple(p.data_ptr() for p in self.parameters), self.stored, self.wanted_block, self.symmetric

    def below(self, other: Matrix) -> Matrix:
        """This matrix and another below it."""
        parameters, fitted = (*self.parameters, *other.parameters), (*self.fitted, *other.fitted)
        return Matrix(parameters, self.stored, self.wanted_block, self.symmetric, fitted)

    def parts(self, gathered: bool = False) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and type of each initializer. gathered: as GatherBlockQuantized and Gather take them."""
        rows, columns = self.shape
        if self.bits is None:
            floats = torch.float32  # while it is traced: store_halves() makes half of it
            return {"table": ((rows, columns), floats)} if gathered else {"weight": ((columns, rows), floats)}
        n_blocks, n_bytes = columns // self.block, self.block * self.bits // 8
        n_zero = -(-n_blocks * self.bits // 8)
        if gathered:
            return {
                "codes": ((rows, n_blocks * n_bytes), torch.uint8),
                "scale": ((rows, n_blocks), torch.float32),
                "zero": ((rows, n_zero), torch.uint8),
            }
        parts = {"codes": ((rows, n_blocks, n_bytes), torch.uint8), "scale": ((rows * n_blocks,), torch.float32)}
        return parts if self.symmetric else {**parts, "zero": ((rows * n_zero,), torch.uint8)}

    def values(self) -> tuple[dict[str, npt.NDArray[np.generic]], float]:
        """The bytes of each part, of either layout: they differ in shape alone. And the relative loss."""
        if self.fitted and (blocks := stack(list(self.fitted))) is not None:
            return _packed(blocks)
        first, *others = (p.detach().float() for p in self.parameters)
        matrix = (torch.cat([first, *others]) if others else first).numpy()  # a large one is rather not copied
        if self.bits is None:
            dense = matrix.astype(np.float16 if self.stored == "fp16" else np.float32, copy=False)
            return {"table": dense, "weight": np.ascontiguousarray(dense.T)}, 0.0
        return _packed(quantize(matrix, bits=self.bits, block=self.block, symmetric=self.symmetric))


def _packed(blocks: Blocks) -> tuple[dict[str, npt.NDArray[np.generic]], float]:
    return {"codes": pack(blocks), "scale": blocks.scale, "zero": pack_zero_points(blocks)}, blocks.loss
