"""Stored tensors as integer codes with block scales: what MatMulNBits and GatherBlockQuantized take, bit for bit.

A weight is scale * code + minimum, per block along the columns. Integer engines want scale * (code - zero_point) with
an integer zero point, so what is left of the minimum becomes a residual: minimum = residual - scale * zero_point.
GGUF layouts after ggml-quants (MIT); the judge in the tests is gguf.quants.dequantize.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_file import StoredTensor
from ...runtime.files.folder_blocks import PackedTensor
from ...runtime.files.fused_tensors import Mxfp4Matrix
from ...runtime.files.gguf_file import GgufTensor
from ...runtime.files.safetensors_file import SafeTensor

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_REQUANTIZED_BLOCK = 32
_AT_ONCE = 1 << 26  # numbers of a matrix that are taken apart at once
_TWICE_FP4 = np.array([128 + sign * x for sign in (1, -1) for x in (0, 1, 2, 3, 4, 6, 8, 12)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Halves:
    """A matrix of floats of 16 bits as it is stored, mapped and not copied."""

    bits: npt.NDArray[np.uint16]  # (rows, columns)
    kind: Literal["float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantized matrix. value = scale * (code - zero_point) + residual, per block."""

    codes: Bytes  # (rows, n_blocks, block), below 2 ** bits
    bits: int  # 4 or 8
    scale: Floats  # (rows, n_blocks)
    zero_point: int | Bytes  # of all blocks, or (rows, n_blocks)
    residual: Floats | None  # (rows, n_blocks); None: zero everywhere
    loss: float = 0.0  # relative error against the source; 0 unless requantized

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        rows, n_blocks, block = self.codes.shape
        return rows, n_blocks * block

    @property
    def block(self) -> int:
        return int(self.codes.shape[2])

    def rows(self, order: npt.NDArray[np.int64]) -> Blocks:
        """The same matrix with its rows in another order."""
        zero = self.zero_point if isinstance(self.zero_point, int) else self.zero_point[order]
        residual = None if self.residual is None else self.residual[order]
        return Blocks(self.codes[order], self.bits, self.scale[order], zero, residual, self.loss)

    def dequantized(self) -> Floats:
        """The matrix in f32, (rows, columns)."""
        zero = self.zero_point if isinstance(self.zero_point, int) else self.zero_point[..., None].astype(np.float32)
        values = self.scale[..., None] * (self.codes.astype(np.float32) - zero)
        if self.residual is not None:
            values = values + self.residual[..., None]
        out: Floats = values.reshape(self.shape)
        return out


def stack(parts: list[Blocks]) -> Blocks | None:
    """Several matrices of equal columns below each other as one; None where their forms differ."""
    first = parts[0]
    if any((p.bits, p.block, p.codes.shape[1]) != (first.bits, first.block, first.codes.shape[1]) for p in parts):
        return None
    zero: int | Bytes
    if all(isinstance(p.zero_point, int) and p.zero_point == first.zero_point for p in parts):
        zero = first.zero_point
    else:
        zero = np.concatenate([np.broadcast_to(np.uint8(p.zero_point), p.scale.shape) for p in parts])
    residual = None
    if any(p.residual is not None for p in parts):
        residual = np.concatenate([p.residual if p.residual is not None else np.zeros_like(p.scale) for p in parts])
    scale = np.concatenate([p.scale for p in parts])
    return Blocks(
        np.concatenate([p.codes for p in parts]), first.bits, scale, zero, residual, max(p.loss for p in parts)
    )


def unpack(tensor: StoredTensor) -> Blocks | Floats:
    """A matrix as blocks, or in f32 where the file holds floats. Types without a block form here are requantized to
    8 bits with the loss recorded."""
    if isinstance(tensor, PackedTensor):
        return Blocks(tensor.codes(), tensor.packing.bits, tensor.scale(), tensor.zero_points(), None)
    if isinstance(tensor, Mxfp4Matrix):
        return mxfp4_blocks(tensor.nibbles(), tensor.exponents())
    if not isinstance(tensor, GgufTensor) or tensor.type_name in ("F32", "F16", "BF16", "F64"):
        return floats(tensor)
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    return _by_parts(rows, _READERS.get(tensor.type_name) or partial(_requantized, tensor), tensor.shape[-1])


def _requantized(tensor: GgufTensor, rows: Bytes) -> Blocks:
    """These rows of the tensor, of a type that has no block form here."""
    return requantize(floats(replace(tensor, shape=(len(rows), tensor.shape[-1]), data=rows)))


def _by_parts(rows: Bytes, reader: Callable[[Bytes], Blocks], columns: int) -> Blocks:
    """What the reader makes of a matrix, of a large one part by part: on the way it takes several times its size."""
    step = max(_AT_ONCE // columns, 1)
    if len(rows) <= step:
        return reader(rows)
    first = reader(rows[:step])
    (_, n_blocks, block), n = first.codes.shape, len(rows)
    codes = np.empty((n, n_blocks, block), dtype=np.uint8)
    scale, residual = np.empty((n, n_blocks), dtype=np.float32), np.zeros((n, n_blocks), dtype=np.float32)
    loss = first.loss
    zero = first.zero_point if isinstance(first.zero_point, int) else np.empty((n, n_blocks), dtype=np.uint8)
    for start in range(0, n, step):
        part, made = slice(start, start + step), reader(rows[start : start + step])
        codes[part], scale[part] = made.codes, made.scale
        if not isinstance(zero, int):
            zero[part] = made.zero_point
        if made.residual is not None:
            residual[part] = made.residual
        loss = max(loss, made.loss)
    return Blocks(codes, first.bits, scale, zero, residual if residual.any() else None, loss)


def halves(tensor: StoredTensor) -> Halves | None:
    """A matrix of floats of 16 bits as it is stored; None where it is of another type."""
    if tensor.type_name not in _HALVES or not isinstance(tensor, GgufTensor | SafeTensor):
        return None
    bits = np.ascontiguousarray(tensor.data).view("<u2").reshape(tensor.shape)
    return Halves(bits, _HALVES[tensor.type_name])


def floats(tensor: StoredTensor) -> Floats:
    """Any tensor in f32, shaped as in the file."""
    return tensor.values()


def requantize(values: Floats) -> Blocks:
    """Symmetric 8-bit blocks of 32 of a matrix, with the relative error (Frobenius)."""
    rows, columns = values.shape
    blocks = np.zeros((rows, -(-columns // _REQUANTIZED_BLOCK) * _REQUANTIZED_BLOCK), dtype=np.float32)
    blocks[:, :columns] = values
    blocks = blocks.reshape(rows, -1, _REQUANTIZED_BLOCK)
    scale = np.abs(blocks).max(axis=-1) / np.float32(127.0)
    codes = np.rint(blocks / np.where(scale == 0, 1, scale)[..., None]) + 128
    made = Blocks(codes.astype(np.uint8), 8, scale, 128, None)
    error = float(np.linalg.norm(made.dequantized()[:, :columns] - values) / max(float(np.linalg.norm(values)), 1e-30))
    return Blocks(made.codes, 8, scale, 128, None, error)


def _with_minimum(codes: Bytes, bits: int, scale: Floats, minimum: Floats) -> Blocks:
    """Blocks from scale * code + minimum: the nearest integer zero point, and the residual it leaves."""
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.rint(-minimum / scale)
    zero = np.clip(np.nan_to_num(nearest, nan=0.0, posinf=0.0, neginf=0.0), 0, 2**bits - 1).astype(np.uint8)
    residual = minimum + scale * zero.astype(np.float32)
    return Blocks(codes, bits, scale, zero, residual if residual.any() else None)


def _f16(data: Bytes) -> Floats:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)[..., 0]


def _nibbles(data: Bytes) -> Bytes:
    """(..., n) bytes to (..., 2 n) codes: low nibbles first, then high ones."""
    return np.concatenate([data & 0x0F, data >> 4], axis=-1)


def _fifth_bits(data: Bytes) -> Bytes:
    """(..., 4) bytes to (..., 32) bits, shifted to where a fifth bit belongs."""
    return np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little") << np.uint8(4)


def _split(rows: Bytes, block_bytes: int) -> Bytes:
    return rows.reshape(len(rows), -1, block_bytes)


def _q4_0(rows: Bytes) -> Blocks:
    b = _split(rows, 18)
    return Blocks(_nibbles(b[..., 2:]), 4, _f16(b[..., :2]), 8, None)


def _q4_1(rows: Bytes) -> Blocks:
    b = _split(rows, 20)
    return _with_minimum(_nibbles(b[..., 4:]), 4, _f16(b[..., :2]), _f16(b[..., 2:4]))


def _q5_0(rows: Bytes) -> Blocks:
    b = _split(rows, 22)
    codes = _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])
    return Blocks(codes + np.uint8(128 - 16), 8, _f16(b[..., :2]), 128, None)


def _q5_1(rows: Bytes) -> Blocks:
    b = _split(rows, 24)
    codes = _nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])
    return _with_minimum(codes, 8, _f16(b[..., :2]), _f16(b[..., 2:4]))


def _q8_0(rows: Bytes) -> Blocks:
    b = _split(rows, 34)
    return Blocks(b[..., 2:] ^ np.uint8(0x80), 8, _f16(b[..., :2]), 128, None)


def _k_scales(b: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 sub-blocks of Q4_K and Q5_K super-blocks, (rows, n, 8) each."""
    d, dmin = _f16(b[..., :2])[..., None], _f16(b[..., 2:4])[..., None]
    low, middle, high = b[..., 4:8], b[..., 8:12], b[..., 12:16]
    scale = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=-1)
    minimum = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], axis=-1)
    return d * scale.astype(np.float32), -(dmin * minimum.astype(np.float32))


def _eights(data: Bytes) -> npt.NDArray[np.uint64]:
    """Eight bytes at a time: (..., n) bytes to (..., n / 8), for operations that move no bit into another byte."""
    return np.ascontiguousarray(data).view(np.uint64)


def _every(byte: int) -> np.uint64:
    """This byte eight times."""
    return np.uint64(byte * 0x0101010101010101)


def _k_nibbles(data: Bytes) -> Bytes:
    """(rows, n, 128) bytes to (rows, n, 8, 32) codes."""
    pairs = _eights(data).reshape(*data.shape[:2], 4, 4)
    codes = np.empty((*data.shape[:2], 4, 2, 4), dtype=np.uint64)
    np.bitwise_and(pairs, _every(0x0F), out=codes[..., 0, :])
    np.bitwise_and(pairs >> np.uint64(4), _every(0x0F), out=codes[..., 1, :])
    return codes.view(np.uint8).reshape(*data.shape[:2], 8, 32)


def _flat(codes: Bytes, *per_block: Floats) -> tuple[Bytes, list[Floats]]:
    """Sub-blocks of all super-blocks of a row in one axis."""
    rows = len(codes)
    return codes.reshape(rows, -1, codes.shape[-1]), [x.reshape(rows, -1) for x in per_block]


def _q4_k(rows: Bytes) -> Blocks:
    b = _split(rows, 144)
    codes, (scale, minimum) = _flat(_k_nibbles(b[..., 16:]), *_k_scales(b))
    return _with_minimum(codes, 4, scale, minimum)


def _q5_k(rows: Bytes) -> Blocks:
    b = _split(rows, 176)
    high = (b[..., 16:48][:, :, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    codes, (scale, minimum) = _flat(_k_nibbles(b[..., 48:]) | (high << np.uint8(4)), *_k_scales(b))
    return _with_minimum(codes, 8, scale, minimum)


def _q6_k(rows: Bytes) -> Blocks:
    b = _split(rows, 210)
    n = b.shape[:2]
    low, high = _eights(b[..., :128]).reshape(*n, 2, 2, 4), _eights(b[..., 128:192]).reshape(*n, 2, 4)
    codes = np.empty((*n, 2, 4, 4), dtype=np.uint64)
    for i in range(4):  # 32 codes of each half: two low nibbles of a byte, then two high ones
        upper = (high >> np.uint64(2 * i) & _every(0x03)) << np.uint64(4)
        codes[..., i, :] = (low[..., i % 2, :] >> np.uint64(4 * (i // 2)) & _every(0x0F)) | upper
    codes += _every(128 - 32)
    scale = _f16(b[..., 208:210])[..., None] * np.ascontiguousarray(b[..., 192:208]).view(np.int8).astype(np.float32)
    flat, (scales,) = _flat(codes.view(np.uint8).reshape(*n, 16, 16), scale)
    return Blocks(flat, 8, scales, 128, None)


def mxfp4_blocks(nibbles: Bytes, exponents: Bytes) -> Blocks:
    """Blocks of numbers of four bits, (rows, n_blocks, block), and powers of two, (rows, n_blocks), with 127 for 1.

    Twice a number is whole and at most 12, so codes need five bits: they become 8, and no number changes.
    """
    scale = np.ldexp(np.float32(0.5), exponents.astype(np.int32) - 127).astype(np.float32)
    return Blocks(_TWICE_FP4[nibbles], 8, scale, 128, None)


def _mxfp4(rows: Bytes) -> Blocks:
    b = _split(rows, 17)
    return mxfp4_blocks(_nibbles(b[..., 1:]), b[..., 0])


_HALVES: dict[str, Literal["float16", "bfloat16"]] = {"F16": "float16", "BF16": "bfloat16"}
_READERS: dict[str, Callable[[Bytes], Blocks]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
