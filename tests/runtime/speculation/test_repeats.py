"""Where a text repeats itself, asked token by token and of drafts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.runtime.interfaces import as_tokens
from pilotfish.runtime.speculation.repeats import Repeats

TEXT = st.lists(st.integers(0, 3) | st.just(2**31), min_size=1, max_size=40)


def slow(text: list[int]) -> bool:
    """Whether its last two tokens stand together earlier in it."""
    return len(text) > 1 and (text[-2], text[-1]) in list(pairwise(text[:-1]))


@given(TEXT, st.data())
def test_at_the_end_of_a_text_that_grows_by_any_steps(text: list[int], data: st.DataObject) -> None:
    repeats, n = Repeats(), 0
    while n < len(text):
        n = data.draw(st.integers(n + 1, len(text)))
        assert repeats.at_end(as_tokens(text[:n])) is slow(text[:n])


@given(TEXT, TEXT)
def test_a_draft_reaches_as_far_as_its_tokens_would_be_wide_steps(text: list[int], drafted: list[int]) -> None:
    repeats = Repeats()
    repeats.at_end(as_tokens(text))
    wide = [len(text) > 1 and slow([*text, *drafted[: k + 1]]) for k in range(len(drafted))]
    expected = wide.index(False) if False in wide else len(drafted)
    if len(text) > 1:
        assert repeats.reach(as_tokens(text), as_tokens(drafted)) == expected
    assert repeats.at_end(as_tokens([*text, *drafted])) is slow([*text, *drafted])


def test_a_text_may_begin_to_repeat_inside_a_draft() -> None:
    repeats = Repeats()
    repeats.at_end(np.array([7, 7]))
    assert repeats.reach(np.array([7, 7]), np.array([7, 7, 7, 8])) == 3
