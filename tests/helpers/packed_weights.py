"""GPTQ and AWQ checkpoints, packed number by number as their definitions say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from family_files import random_family
from folders import floats_of, folder_of, settings_of, write_safetensors

Method = Literal["gptq", "gptq_v2", "awq"]
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds


@dataclass(frozen=True)
class Rounded:
    """A matrix as codes (rows, columns), and zero points and scales (rows, groups)."""

    codes: npt.NDArray[np.int64]
    zeros: npt.NDArray[np.int64]
    scales: npt.NDArray[np.float16]

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.zeros.shape[1]

    def values(self) -> npt.NDArray[np.float32]:
        """scale * (code - zero point), number by number."""
        out = np.empty(self.codes.shape, dtype=np.float32)
        for row, column in np.ndindex(*out.shape):
            at = row, column // self.group
            out[row, column] = float(self.scales[at]) * (int(self.codes[row, column]) - int(self.zeros[at]))
        return out


def rounded(matrix: npt.NDArray[np.float32], group: int, bits: int, rng: np.random.Generator) -> Rounded:
    """The matrix rounded group by group, with zero points over the whole range, the first ones 0 and the last."""
    rows, columns = matrix.shape
    parts = matrix.reshape(rows, columns // group, group)
    top = (1 << bits) - 1
    zeros = rng.integers(0, top + 1, parts.shape[:2])
    zeros[0, 0], zeros[1, 0] = 0, top
    scales = (np.abs(parts).max(axis=-1) / (top / 2)).astype(np.float16)
    codes = np.clip(np.rint(parts / scales[..., None].astype(np.float32)) + zeros[..., None], 0, top)
    return Rounded(codes.astype(np.int64).reshape(rows, columns), zeros, scales)


def packed(made: Rounded, method: Method, bits: int) -> dict[str, npt.NDArray[Any]]:
    """qweight, qzeros, scales and, for GPTQ, g_idx, as the checkpoint has them."""
    rows, columns = made.codes.shape
    n, groups = 32 // bits, made.zeros.shape[1]
    zeros = np.zeros((groups, rows // n), dtype=np.uint64)
    for group, row in np.ndindex(groups, rows):
        word, at = divmod(row, n)
        place = _AWQ_ORDER.index(at) if method == "awq" else at
        zeros[group, word] |= np.uint64(int(made.zeros[row, group]) << (bits * place))
    if method == "gptq":  # of every number one less, the word being taken as a whole
        zeros -= np.uint64(sum(1 << (bits * i) for i in range(n)))
    words = np.zeros((columns, rows // n) if method == "awq" else (columns // n, rows), dtype=np.uint64)
    for row, column in np.ndindex(rows, columns):
        code = int(made.codes[row, column])
        if method == "awq":
            words[column, row // n] |= np.uint64(code << (bits * _AWQ_ORDER.index(row % n)))
        else:
            words[column // n, row] |= np.uint64(code << (bits * (column % n)))
    found: dict[str, npt.NDArray[Any]] = {
        "qweight": words.astype(np.uint32).view(np.int32),
        "qzeros": zeros.astype(np.uint32).view(np.int32),
        "scales": np.ascontiguousarray(made.scales.T),
    }
    return found if method == "awq" else found | {"g_idx": (np.arange(columns) // made.group).astype(np.int32)}


def quantization(method: Method, bits: int, group: int) -> dict[str, Any]:
    """The quantization_config of such a checkpoint."""
    if method == "awq":
        return {"quant_method": "awq", "bits": bits, "group_size": group, "version": "gemm", "zero_point": True}
    form = {"checkpoint_format": method, "desc_act": False, "sym": False}
    return {"quant_method": "gptq", "bits": bits, "group_size": group, **form}


def quantized(folder: Path, name: str, method: Method, bits: int, group: int) -> tuple[Path, Path]:
    """A quantized folder, and one of the floats that its definition says."""
    rng = np.random.default_rng(1)
    plain = folder_of(name, random_family(name, folder / "m.gguf"), folder / "plain")
    tensors: dict[str, Any] = {}
    meant: dict[str, Any] = {}
    for key, values in floats_of(name, folder / "m.gguf").items():
        if ".layers." not in key or values.ndim == 1:
            tensors[key] = meant[key] = values
            continue
        made = rounded(values, group if group > 0 else values.shape[1], bits, rng)
        meant[key] = made.values()
        stem = key.removesuffix(".weight")
        tensors |= {f"{stem}.{part}": array for part, array in packed(made, method, bits).items()}
    other = folder_of(name, folder / "m.gguf", folder / "packed")
    write_safetensors(plain / "model.safetensors", meant)
    write_safetensors(other / "model.safetensors", tensors)
    settings = settings_of(name, quantization_config=quantization(method, bits, group))
    (other / "config.json").write_text(json.dumps(settings))
    return other, plain
