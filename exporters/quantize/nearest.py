"""Round-to-nearest quantization of f32 matrices into blocks, with a short search for the scale of each block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .blocks import Blocks, Bytes, Floats

_CHUNK = 1 << 22  # weights quantized at a time: the search needs a few copies
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the range: what lies outside is clipped, what lies inside gets finer
_TINY = 1e-12


def quantize(matrix: Floats, *, bits: int, block: int, symmetric: bool, importance: Floats | None = None) -> Blocks:
    """A matrix (rows, columns) as codes of 4 or 8 bits, blocks along the columns, which must be a multiple of `block`.

    Every block takes, out of a few, the range with the smallest squared error. symmetric: the zero point is the
    middle code; else it is whatever integer lets the range begin at the smallest weight. importance: of the squared
    error of each column; None: all alike. Blocks.loss is the relative error, |w - w'| / |w| by Frobenius norm, so
    weighted.
    """
    rows, columns = matrix.shape
    codes = np.empty((rows, columns // block, block), dtype=np.uint8)
    scale = np.empty((rows, columns // block), dtype=np.float32)
    zero = np.empty((rows, columns // block), dtype=np.uint8)
    counts = None if importance is None else importance.reshape(columns // block, block)
    lost = total = 0.0
    for chunk in _chunks(rows, columns):
        part = np.ascontiguousarray(matrix[chunk]).reshape(-1, columns // block, block)
        codes[chunk], scale[chunk], zero[chunk], error = _best(part, bits, symmetric, counts)
        lost += error
        total += float(_weighted(np.square(part, dtype=np.float32), counts).sum(dtype=np.float64))
    middle = 1 << (bits - 1)
    loss = float(np.sqrt(lost / max(total, _TINY)))
    return Blocks(codes, bits, scale, middle if symmetric else zero, None, loss)


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(_CHUNK // columns, 1)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _best(part: Floats, bits: int, symmetric: bool, counts: Floats | None) -> tuple[Bytes, Floats, Bytes, float]:
    """codes, scale, zero point and squared error of blocks (rows, n_blocks, block). counts: (n_blocks, block)."""
    best: tuple[Bytes, Floats, Bytes] | None = None
    least = np.full(part.shape[:2], np.inf, dtype=np.float32)
    for shrink in _SHRINK if bits < 8 else _SHRINK[:1]:
        candidate = _rounded(part, bits, symmetric, shrink)
        codes, scale, zero = candidate
        restored = (codes.astype(np.float32) - zero[..., None]) * scale[..., None]
        error = _weighted(np.square(restored - part), counts).sum(axis=-1)
        if best is None:
            best, least = candidate, error
            continue
        better = error < least
        best[0][better], best[1][better], best[2][better] = codes[better], scale[better], zero[better]
        least = np.where(better, error, least)
    assert best is not None
    return *best, float(least.sum(dtype=np.float64))


def _weighted(squares: Floats, counts: Floats | None) -> Floats:
    return squares if counts is None else squares * counts


def _rounded(part: Floats, bits: int, symmetric: bool, shrink: float) -> tuple[Bytes, Floats, Bytes]:
    top = (1 << bits) - 1
    middle = 1 << (bits - 1)
    if symmetric:  # the side of the larger weight gets the extra code
        extreme = np.take_along_axis(part, np.abs(part).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        scale = extreme * np.float32(-shrink / middle)
        zero = np.full(scale.shape, middle, dtype=np.uint8)
    else:
        low = np.minimum(part.min(axis=-1), 0.0) * np.float32(shrink)
        high = np.maximum(part.max(axis=-1), 0.0) * np.float32(shrink)
        scale = (high - low) / np.float32(top)
        zero = np.clip(np.rint(-low / np.where(scale > _TINY, scale, 1.0)), 0, top).astype(np.uint8)
    inverse = np.where(np.abs(scale) > _TINY, 1.0 / np.where(np.abs(scale) > _TINY, scale, 1.0), 0.0)
    codes = np.clip(np.rint(part * inverse[..., None] + zero[..., None]), 0, top).astype(np.uint8)
    return codes, scale.astype(np.float32), zero
