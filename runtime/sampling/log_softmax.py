"""Logarithms of probabilities, from logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..interfaces import Floats


def log_softmax(logits: Floats, dtype: type[np.floating[Any]] = np.float64) -> npt.NDArray[Any]:
    """log p of every token, of the logits' shape, (..., vocab_size). Sums are taken in f64, whatever the dtype."""
    shifted: npt.NDArray[Any] = np.subtract(logits, logits.max(axis=-1, keepdims=True), dtype=dtype)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(dtype)
    return shifted


def log_sum_exp(logits: Floats) -> npt.NDArray[np.float64]:
    """What log_softmax() takes off the logits of a row, (...)."""
    top = logits.max(axis=-1).astype(np.float64)
    total = np.exp(np.subtract(logits, top[..., None], dtype=np.float64)).sum(axis=-1)
    return np.asarray(top + np.log(total))
