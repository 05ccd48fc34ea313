"""Logarithms of probabilities, from logits of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pilotfish.runtime.sampling.log_softmax import log_softmax, log_sum_exp


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_logarithm_of_the_softmax_and_keeps_the_logits(dtype: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32) * 5
    before, probs = logits.copy(), np.exp(logits.astype(np.float64))
    found = log_softmax(logits, dtype)
    assert found.dtype == dtype and np.array_equal(logits, before)
    assert np.allclose(found, np.log(probs / probs.sum(axis=1, keepdims=True)), atol=1e-5)
    assert np.array_equal(found[1], log_softmax(logits[1], dtype))
    assert np.allclose(logits - log_sum_exp(logits)[:, None], found, atol=1e-5)


def test_large_and_forbidden_logits_stay_exact() -> None:
    logits = np.array([1e4, 1e4, -np.inf, -1e4], dtype=np.float32)
    assert log_softmax(logits).tolist() == [-np.log(2), -np.log(2), -np.inf, -20000.0 - np.log(2)]
    assert float(log_sum_exp(logits)) == 1e4 + np.log(2)
