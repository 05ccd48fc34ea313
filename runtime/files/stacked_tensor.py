"""Tensors that hold a matrix for each expert, and those of one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .decoder_file import StoredTensor
from .gguf_file import GgufTensor
from .safetensors_file import SafeTensor


@runtime_checkable
class Stacked(Protocol):
    """A tensor whose members are made one by one."""

    def member(self, i: int) -> StoredTensor:
        """What lies at i of the first axis."""


@dataclass(frozen=True, slots=True)
class StackedTensor:
    """Tensors of one shape that a model holds one by one."""

    name: str
    members: tuple[StoredTensor, ...]

    @property
    def type_name(self) -> str:
        return self.members[0].type_name

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.members), *self.members[0].shape)

    def member(self, i: int) -> StoredTensor:
        return self.members[i]

    def values(self) -> npt.NDArray[np.float32]:
        return np.stack([tensor.values() for tensor in self.members])


def one_of(tensor: StoredTensor, member: int | None) -> StoredTensor:
    """The member of a tensor, not copied; None: the tensor itself."""
    if member is None:
        return tensor
    if isinstance(tensor, GgufTensor):
        return replace(tensor, shape=tensor.shape[1:], data=tensor.data[member])
    if isinstance(tensor, SafeTensor):
        data = tensor.data.reshape(tensor.shape[0], -1)[member]
        start = tensor.start + member * data.nbytes
        return replace(tensor, shape=tensor.shape[1:], data=data, start=start)
    assert isinstance(tensor, Stacked), tensor
    return tensor.member(member)
