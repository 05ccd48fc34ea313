"""Matrices of GPTQ and AWQ checkpoints: integer codes with a scale and a zero point for each group of a row's columns.

A weight is scale * (code - zero point). Source: AutoGPTQ and GPTQModel for GPTQ, AutoAWQ's packing_utils.py for AWQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, UnsupportedModelError
from .folder_files import json_object
from .safetensors_file import SafeTensor

Bytes = npt.NDArray[np.uint8]

PARTS = ("qweight", "qzeros", "scales", "g_idx")  # of one matrix
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # which nibble of a word holds its column 0, 1, ...
_BITS = {"gptq": (4, 8), "awq": (4,)}
_FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_SMALLEST, _LARGEST = 16, 128  # columns of a block that engines multiply


@dataclass(frozen=True, slots=True)
class Packing:
    """How the quantized matrices of a folder are stored. group: columns that share a scale; None: all of a row."""

    method: Literal["gptq", "awq"]
    bits: int
    group: int | None
    less_one: bool  # zero points are stored as one less


def packing_of(settings: Mapping[str, Any], path: Path) -> Packing | None:
    """What config.json says of quantized weights; None where they are none.

    Raises UnsupportedModelError for other methods and forms, with the way out.
    """
    said = settings.get("quantization_config")
    if said is None:  # older checkpoints say it in a file of its own
        gptq, awq = json_object(path / "quantize_config.json"), json_object(path / "quant_config.json")
        said = {"quant_method": "gptq", **gptq} if gptq else {"quant_method": "awq", **awq} if awq else None
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ModelFileError(f"{path}: quantization_config is {said!r:.60}, but must be an object.")
    if said.get("quant_method") == "mxfp4":
        return None  # of experts, whose tensors say so by their names
    method, bits = said.get("quant_method"), said.get("bits", said.get("w_bit"))
    if method not in ("gptq", "awq"):
        raise _not_read(path, f"its weights are quantized by {method!r}; GPTQ and AWQ are read")
    if bits not in _BITS[method]:
        raise _not_read(path, f"{method} weights of {bits!r} bits are not; those of {_numbers(_BITS[method])} are")
    if method == "gptq":
        form = said.get("checkpoint_format") or said.get("format") or "gptq"
    else:
        form = said.get("version") or said.get("format") or "gemm"
    if str(form).lower() not in _FORMATS[method]:
        raise _not_read(path, f"its {method} weights are packed as {form!r}; {' and '.join(_FORMATS[method])} are read")
    if said.get("dynamic"):
        raise _not_read(path, "its matrices are quantized in several ways (dynamic)")
    group = said.get("group_size", said.get("q_group_size", 128))
    if type(group) is not int or not (group == -1 or group > 0):
        raise ModelFileError(f"{path}: group_size is {group!r}, but must be a positive whole number, or -1.")
    return Packing(method, int(bits), None if group == -1 else group, method == "gptq" and form == "gptq")


def _numbers(bits: tuple[int, ...]) -> str:
    return " and ".join(map(str, bits))


def _not_read(path: Path, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path} cannot be opened: {why}. Give the model that it was quantized from, or a .gguf file of it."
    )


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A quantized matrix; the four tensors it consists of are mapped and not copied."""

    name: str
    packing: Packing
    shape: tuple[int, int]  # (rows, columns), of the matrix
    block: int  # columns that share a scale here: all of a group, or a power of two that divides it
    words: SafeTensor
    zero_words: SafeTensor
    scales: SafeTensor

    @property
    def type_name(self) -> str:
        return f"{self.packing.method.upper()}-{self.packing.bits}"

    def codes(self) -> Bytes:
        """(rows, n_blocks, block), below 2 ** bits."""
        words = self.words.array()
        if self.packing.method == "awq":
            codes = _nibbles(words).reshape(*words.shape, 8)[..., _AWQ_ORDER].reshape(len(words), -1).T
        else:  # a word holds columns that follow each other
            codes = _unpacked(np.ascontiguousarray(words.T), self.packing.bits)
        return np.ascontiguousarray(codes).reshape(self.shape[0], -1, self.block)

    def scale(self) -> npt.NDArray[np.float32]:
        """(rows, n_blocks)"""
        return self._by_block(self.scales.values())

    def zero_points(self) -> Bytes:
        """(rows, n_blocks)"""
        words, bits = self.zero_words.array().view(np.uint32), self.packing.bits
        if self.packing.less_one:  # taken off the words as a whole, which borrows from the number above a zero
            words = words + np.uint32(sum(1 << at for at in range(0, 32, bits)))
        if self.packing.method == "awq":
            return self._by_block(_nibbles(words).reshape(*words.shape, 8)[..., _AWQ_ORDER].reshape(len(words), -1))
        return self._by_block(_unpacked(words, bits))

    def _by_block(self, of_groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(groups, rows) as (rows, n_blocks)."""
        n = self.shape[1] // self.block // len(of_groups)
        return np.ascontiguousarray(np.repeat(of_groups.T, n, axis=1))

    def values(self) -> npt.NDArray[np.float32]:
        """The matrix in f32."""
        whole = self.codes().astype(np.float32) - self.zero_points()[..., None]
        return np.asarray(self.scale()[..., None] * whole, dtype=np.float32).reshape(self.shape)


def packed_tensor(name: str, parts: Mapping[str, SafeTensor], packing: Packing, path: Path) -> PackedTensor:
    """The matrix that these tensors are parts of.

    Raises ModelFileError where they contradict each other, and UnsupportedModelError for groups that are not built.
    """
    for part in PARTS[:3]:
        if part not in parts:
            raise ModelFileError(f"{path} has no tensor {name}.{part}. Fetch or copy the model again.")
    words, zeros, scales = (parts[part] for part in PARTS[:3])
    by_word = 32 // packing.bits
    if len(words.shape) != 2 or len(scales.shape) != 2 or words.type_name != "I32" or zeros.type_name != "I32":
        raise ModelFileError(f"{path}: {name}.qweight and its parts are no packed matrix of {packing.method}.")
    if packing.method == "awq":
        columns, rows = words.shape[0], words.shape[1] * by_word
    else:
        columns, rows = words.shape[0] * by_word, words.shape[1]
    group = packing.group or columns
    wanted = {part: (columns // group, n) for part, n in (("scales", rows), ("qzeros", rows // by_word))}
    for part, shape in wanted.items():
        if columns % group or parts[part].shape != shape:
            raise ModelFileError(
                f"{path}: tensor {name}.{part} has shape {parts[part].shape}, but {shape} was expected of groups of "
                f"{group} columns, which config.json says. Fetch or copy the model again."
            )
    block = min(group & -group, _LARGEST)  # the largest power of two that divides it
    if block < _SMALLEST:
        raise UnsupportedModelError(
            f"{path}: {name} has a scale for each {group} columns; groups of a multiple of {_SMALLEST} are built."
        )
    _require_in_order(name, parts, group, columns, path)
    return PackedTensor(name, packing, (rows, columns), block, words, zeros, scales)


def _require_in_order(name: str, parts: Mapping[str, SafeTensor], group: int, columns: int, path: Path) -> None:
    """Raise UnsupportedModelError where columns are not in the groups that they lie in (desc_act)."""
    if "g_idx" not in parts:
        return
    found = parts["g_idx"].array().reshape(-1)
    if len(found) != columns:
        raise ModelFileError(f"{path}: tensor {name}.g_idx names {len(found)} of {columns} columns.")
    if not np.array_equal(found, np.arange(columns) // group):
        raise _not_read(path, f"the columns of {name} are quantized in an order of their own (desc_act)")


def _unpacked(words: npt.NDArray[Any], bits: int) -> Bytes:
    """(n, m) words of 32 bits as (n, m * 32 / bits) numbers, the lowest bits first."""
    return _nibbles(words) if bits == 4 else words.astype("<u4").view(np.uint8)


def _nibbles(words: npt.NDArray[Any]) -> Bytes:
    """(n, m) words of 32 bits as (n, 8 m) numbers below 16, the lowest bits first."""
    data = np.ascontiguousarray(words.astype("<u4", copy=False)).view(np.uint8)
    found = np.empty((len(data), 2 * data.shape[1]), dtype=np.uint8)
    found[:, 0::2], found[:, 1::2] = data & np.uint8(0x0F), data >> np.uint8(4)
    return found
