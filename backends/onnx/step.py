"""The inputs and outputs of one step of ONNX Runtime, and how many rows it runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.interfaces import Floats, Indices, Tokens

_TILE = 128  # rows that MatMulNBits gives to one of several threads


def rows_run(n: int) -> int:
    """How many rows run where n are wanted: one more where the last of several would be alone in its tile.

    MatMulNBits (MlasQNBitGemmBatch) multiplies a tile of one row by other sums than a tile of more rows.
    """
    return n + 1 if n > 1 and n % _TILE == 1 else n


class BoundStep:
    """Bound inputs and outputs of one width: numpy memory that ONNX Runtime reads and writes in place.

    logits: (rows_run(n_logits), vocab_size). A spare row repeats the last one.
    """

    def __init__(self, ort: Any, width: int, n_logits: int, logits: Floats) -> None:
        self.key = width, n_logits
        self.ids = np.zeros((1, rows_run(width)), dtype=np.int64)
        self.positions = np.zeros((1, rows_run(width)), dtype=np.int64)
        self.rows = np.minimum(np.arange(len(logits), dtype=np.int64) + (width - n_logits), width - 1)
        self.logits = logits
        value = ort.OrtValue.ortvalue_from_numpy
        self.inputs = [
            ("input_ids", value(self.ids)),
            ("position_ids", value(self.positions)),
            ("logit_rows", value(self.rows)),
        ]
        self.output = value(self.logits)

    def fill(self, tokens: Tokens, positions: Indices) -> None:
        width = len(tokens)
        self.ids[0, :width], self.ids[0, width:] = tokens, tokens[-1]
        self.positions[0, :width], self.positions[0, width:] = positions, positions[-1]
