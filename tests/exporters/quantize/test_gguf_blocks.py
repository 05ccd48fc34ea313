"""Quantized GGUF tensors as integer blocks: bit for bit what gguf.quants.dequantize says."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from pilotfish.exporters.onnx.products import pack, pack_zero_points
from pilotfish.exporters.quantize import blocks as module
from pilotfish.exporters.quantize.blocks import Blocks, requantize, stack, unpack
from pilotfish.runtime.errors import UnsupportedModelError
from pilotfish.runtime.files.gguf_file import GgufTensor
from pilotfish.testing.tiny_models import BLOCK_TYPES, random_blocks

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
FLOATS = ("F32", "F16", "BF16")


def tensor(type_name: str, rows: int = 6, columns: int = 768, seed: int = 0) -> GgufTensor:
    data = random_blocks(type_name, rows, columns, np.random.default_rng(seed))
    return GgufTensor("t", type_name, (rows, columns), data)


def blocks(t: GgufTensor) -> Blocks:
    made = unpack(t)
    assert isinstance(made, Blocks)
    return made


def from_packed(b: Blocks) -> np.ndarray:
    """What MatMulNBits makes of the packed bytes, read by its documentation and not by our code."""
    rows, n_blocks, block = b.codes.shape
    packed, zeros = pack(b).reshape(rows, n_blocks, -1), pack_zero_points(b)
    if b.bits == 4:
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, n_blocks, block)
        zeros = zeros.reshape(rows, -1)
        zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, :n_blocks]
    else:
        codes, zeros = packed, zeros.reshape(rows, n_blocks)
    values = b.scale[..., None] * (codes.astype(np.float32) - zeros[..., None].astype(np.float32))
    if b.residual is not None:
        values = values + b.residual[..., None]
    return values.reshape(rows, -1)


@pytest.mark.parametrize("type_name", EXACT)
@pytest.mark.parametrize("seed", range(5))
def test_bit_equal(type_name: str, seed: int) -> None:
    t = tensor(type_name, seed=seed)
    judge = dequantize(t.data, GGMLQuantizationType[type_name])
    made = blocks(t)
    assert made.shape == t.shape and made.loss == 0
    assert int(made.codes.max()) < 2**made.bits
    assert np.array_equal(made.dequantized(), judge)
    assert np.array_equal(from_packed(made), judge)


@pytest.mark.parametrize("type_name", [*EXACT, "Q3_K", "IQ4_NL"])
def test_a_large_matrix_is_taken_apart_part_by_part(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    t = tensor(type_name, rows=7)
    whole = blocks(t)
    monkeypatch.setattr(module, "_AT_ONCE", 2 * 768)  # two rows, and one that is left over
    parted = blocks(t)
    assert (parted.bits, parted.shape) == (whole.bits, whole.shape)
    assert np.array_equal(parted.dequantized(), whole.dequantized()) and bool(parted.loss) == bool(whole.loss)


def test_numbers_of_four_bits_become_codes_of_eight() -> None:
    """MXFP4: every number, every power of two that an f32 has, in a file's own bytes."""
    data = np.random.default_rng(0).integers(0, 256, (40, 8, 17), dtype=np.uint8)
    data[..., 0] = np.arange(40 * 8).reshape(40, 8) % 252 + 1
    t = GgufTensor("t", "MXFP4", (40, 256), data.reshape(40, -1))
    made = blocks(t)
    assert (made.bits, made.loss) == (8, 0)
    assert np.array_equal(made.dequantized(), dequantize(t.data, GGMLQuantizationType.MXFP4))
    assert np.array_equal(from_packed(made), made.dequantized())


@pytest.mark.parametrize("type_name", EXACT)
def test_bit_equal_at_the_edges(type_name: str) -> None:
    """All codes 0, all codes highest, scales zero, minima far outside what a zero point can be."""
    for fill in (0, 0xFF):
        t = tensor(type_name)
        keep = [0, 1, 2, 3] if type_name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else [0, 1]
        keep = [208, 209] if type_name == "Q6_K" else keep
        size = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
        raw = t.data.reshape(len(t.data), -1, size[type_name])
        scales = raw[..., keep].copy()
        raw[:] = fill
        raw[..., keep] = scales
        raw[0, ..., keep[:2]] = 0  # scale 0
        if len(keep) == 4:
            raw[1, ..., keep[2:]] = np.frombuffer(np.float16(3.0).tobytes(), np.uint8).reshape(2, 1)
            raw[2, ..., keep[2:]] = np.frombuffer(np.float16(-3.0).tobytes(), np.uint8).reshape(2, 1)
        made, judge = blocks(t), dequantize(t.data, GGMLQuantizationType[type_name])
        scale = np.abs(judge).max()
        assert np.abs(made.dequantized() - judge).max() <= 1e-6 * scale  # the zero point rounds where it is clipped
        assert np.isfinite(made.dequantized()).all()


def test_no_residual_where_the_minimum_is_a_multiple_of_the_scale() -> None:
    assert all(blocks(tensor(name)).residual is None for name in ("Q4_0", "Q5_0", "Q8_0", "Q6_K"))
    raw = tensor("Q4_1").data.reshape(6, -1, 20)
    raw[..., :2] = np.frombuffer(np.float16(0.25).tobytes(), np.uint8)
    raw[..., 2:4] = np.frombuffer(np.float16(-1.75).tobytes(), np.uint8)
    made = blocks(GgufTensor("t", "Q4_1", (6, 768), raw.reshape(6, -1)))
    assert made.residual is None and (np.asarray(made.zero_point) == 7).all()


@pytest.mark.parametrize("type_name", FLOATS)
def test_floats_stay_floats(type_name: str) -> None:
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    kind = GGMLQuantizationType[type_name]
    data = quantize(values, kind)
    made = unpack(GgufTensor("t", type_name, (4, 8), np.ascontiguousarray(data).view(np.uint8)))
    assert not isinstance(made, Blocks)
    assert np.array_equal(made, dequantize(data, kind))


@pytest.mark.parametrize("type_name", [name for name in BLOCK_TYPES if name not in EXACT])
def test_other_types_are_requantized_and_the_loss_is_told(type_name: str) -> None:
    t = tensor(type_name)
    made, source = blocks(t), t.values()
    error = np.linalg.norm(made.dequantized() - source) / np.linalg.norm(source)
    assert made.bits == 8 and 0 < error < 0.01
    assert made.loss == pytest.approx(float(error))


def test_requantizing_zeros_and_uneven_rows() -> None:
    assert requantize(np.zeros((2, 64), np.float32)).loss == 0
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    made = requantize(values)
    assert made.shape == (3, 64)  # padded to whole blocks with zeros
    assert not made.dequantized()[:, 40:].any()


def test_types_nobody_dequantizes() -> None:
    raw = np.zeros((2, 292), dtype=np.uint8)
    with pytest.raises(UnsupportedModelError, match=r"tensor t has the type Q8_K.*Q4_K_M"):
        unpack(GgufTensor("t", "Q8_K", (2, 256), raw))


def test_stacking_is_the_same_matrices_below_each_other() -> None:
    a, b, c = (blocks(tensor(name, rows, seed=rows)) for name, rows in (("Q4_0", 3), ("Q4_1", 4), ("Q4_0", 5)))
    stacked = stack([a, b, c])
    assert stacked is not None
    assert np.array_equal(stacked.dequantized(), np.concatenate([x.dequantized() for x in (a, b, c)]))
    assert np.array_equal(from_packed(stacked), stacked.dequantized())
    assert stack([a, blocks(tensor("Q8_0"))]) is None  # 4 bits and 8 bits
    assert stack([blocks(tensor("Q8_0")), blocks(tensor("Q6_K"))]) is None  # blocks of 32 and of 16


def test_rows_in_another_order() -> None:
    for name in ("Q4_1", "Q5_0"):
        made = blocks(tensor(name))
        order = np.array([3, 0, 5, 1, 4, 2])
        assert np.array_equal(made.rows(order).dequantized(), made.dequantized()[order])
