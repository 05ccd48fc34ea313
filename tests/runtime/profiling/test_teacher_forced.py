"""What a session says along a text, in steps of given widths."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.runtime.profiling.teacher_forced import logits_along_text
from pilotfish.testing.toy import ToyWeights


@pytest.mark.parametrize("widths", [(1,), (4,), (8, 4, 2), (64,)])
@pytest.mark.parametrize("chunk", [None, 3, 100])
@pytest.mark.parametrize("n_logits", [1, 7, 23])
def test_rows_are_those_of_one_step(widths: tuple[int, ...], chunk: int | None, n_logits: int) -> None:
    tokens = np.random.default_rng(1).integers(0, 17, 23)
    weights = ToyWeights(vocab_size=17, context_length=64)
    whole = weights.session().forward(tokens, n_logits=n_logits).logits
    session = weights.session()
    assert np.array_equal(logits_along_text(session, tokens, n_logits, widths=widths, chunk=chunk), whole)
    assert len(session.positions) == 23
