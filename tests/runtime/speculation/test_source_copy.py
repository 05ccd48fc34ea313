"""Copies of the source: where copying goes on after an edit, and how sure it is of itself."""

from __future__ import annotations

import numpy as np
import pytest
from allowance import Allowance

from pilotfish.runtime.interfaces import Draft, Proposer, SourceReader, as_tokens
from pilotfish.runtime.speculation.proposers import SourceCopy, Suffix

START = 256


def reader(source: str) -> Proposer:
    return SourceCopy().reading(as_tokens([*source.encode(), 0]), 1)


def drafted(source: str, output: str, k: int = 5) -> str:
    """What is drafted behind the output, of which every token was a round of its own."""
    return text(after(source, output.encode(), k))


def after(source: str, output: bytes, k: int = 5) -> Draft:
    one, context = reader(source), [START, *output]
    for n in range(1, len(context)):
        one.propose(as_tokens(context[:n]), Allowance(k))
    return one.propose(as_tokens(context), Allowance(k))


def text(draft: Draft) -> str:
    return bytes(draft.tokens.tolist()).decode()


SOURCE = "one two three four five six"


@pytest.mark.parametrize(
    ("output", "goes_on"),
    [
        ("", ""),  # nothing is known yet
        ("o", ""),
        ("on", "e two"),
        ("zqone", ""),  # it is not clear whether it copies
        ("zqone t", "wo th"),
        ("zqxjvk", ""),  # has copied nothing
        ("one t", "wo th"),
        ("one X", "wo th"),  # replaced
        ("one tXwo", " thre"),  # put in
        ("one wo", " thre"),  # left out
        ("one three f", "our f"),  # a word left out
        ("one two and three", " four"),
        ("One two threE", " four"),
        ("four fiv", "e six"),  # begun in the middle
        ("five six, and one two", " thre"),  # moved
        ("one two three four five six", "\0"),
    ],
)
def test_copying_goes_on_where_the_output_has_got_to(output: str, goes_on: str) -> None:
    assert drafted(SOURCE, output) == goes_on
    at_once = reader(SOURCE).propose(as_tokens([START, *output.encode()]), Allowance(5))  # after one long round
    assert text(at_once) == goes_on


def test_nothing_is_left_behind_the_end() -> None:
    assert drafted(SOURCE, SOURCE + "\0") == ""
    assert text(SourceCopy().propose(as_tokens([1, 2]), Allowance(5))) == ""


def test_chances_follow_what_was_copied() -> None:
    def chance(output: bytes) -> float:
        draft = after(SOURCE * 4, output)
        return 0.0 if draft.expected is None else float(draft.expected[0])

    copied = (SOURCE * 4).encode()
    assert chance(copied[:80]) > chance(copied[:10]) > 0.8
    other = np.random.default_rng(0).integers(128, 250, 60).astype(np.uint8).tobytes()
    assert chance(copied[:4] + other[:2]) == 0.0 < chance(copied[:4] + other[:1]) <= 0.5  # silent before long
    assert chance(other + copied[:60]) > 0.8  # and found again
    draft = reader(SOURCE).propose(as_tokens([START, *copied[:10]]), Allowance(5))
    assert draft.expected is not None and (np.diff(draft.expected) < 0).all() and draft.distributions is None


def test_rounds_of_any_length_align_alike_after_a_copy() -> None:
    output = b"One two thre four fife six"
    rng = np.random.default_rng(1)
    for _ in range(20):
        one, n = reader(SOURCE), 0
        while n < len(output):
            n = min(len(output), n + int(rng.integers(1, 9)))
            last = one.propose(as_tokens([START, *output[:n]]), Allowance(5))
        assert text(last) == "\0"


def test_both_lookups_read_sources() -> None:
    for proposer in (SourceCopy(), Suffix()):
        assert isinstance(proposer, SourceReader)
        again = proposer.reading(as_tokens([5, 6, 7, 8]), 1).propose(as_tokens([9, 5, 6]), Allowance(2))
        assert again.tokens.tolist() == [7, 8]
    assert Suffix().propose(as_tokens([9, 6]), Allowance(2)).tokens.tolist() == []


def test_misspelled_text_is_copied_in_long_rounds() -> None:
    words = [f"w{n}ord{n * 7 % 10}s" for n in range(200)]
    answer = " ".join(words)
    wrong = [word[1:] if n % 12 == 0 else word[:2] + word if n % 12 == 6 else word for n, word in enumerate(words)]
    one, context, n_rounds = reader(" ".join(wrong)), np.array([START, *answer.encode()], dtype=np.int64), 0
    n = 1
    while n < len(context):
        tokens = one.propose(context[:n], Allowance(32)).tokens[: len(context) - n - 1]
        right = tokens == context[n : n + len(tokens)]
        n += 1 + (len(right) if right.all() else int(right.argmin()))
        n_rounds += 1
    assert len(answer) / n_rounds > 10


def test_an_answer_about_something_else_is_found_again_when_it_copies() -> None:
    other = b"zq" * 200
    copied = SOURCE.encode()
    assert text(after(SOURCE, other + copied[:20])) == SOURCE[20:25]
    at_once = reader(SOURCE).propose(as_tokens([START, *other, *copied[:20]]), Allowance(5))
    assert text(at_once) == SOURCE[20:25]


def chance(one: Proposer, output: bytes) -> float:
    """Of the first token it drafts; the output was one round."""
    draft = one.propose(as_tokens([START, *output]), Allowance(5))
    return 0.0 if draft.expected is None else float(draft.expected[0])


def test_an_answer_after_one_that_copied_is_taken_to_copy() -> None:
    copies = SourceCopy()
    assert chance(copies.reading(as_tokens([*SOURCE.encode()]), 1), b"") == 0.0
    assert chance(copies.reading(as_tokens([*SOURCE.encode()]), 1), b"one") > 0.8
    fresh = copies.reading(as_tokens([*SOURCE.encode()]), 1)
    assert text(fresh.propose(as_tokens([START]), Allowance(5))) == "one t"
    assert chance(fresh, b"zqx") == 0.0  # this one does not,
    assert chance(copies.reading(as_tokens([*SOURCE.encode()]), 1), b"") == 0.0  # so the next is not taken to
    other = SourceCopy()
    assert chance(other.reading(as_tokens([*SOURCE.encode()]), 1), b"") == 0.0  # of its own model only


def test_how_texts_go_on_after_an_edit_is_learnt_over_answers() -> None:
    source = SOURCE * 3

    def learnt(answers: list[bytes]) -> tuple[float, float]:
        """Chances after a token that stands nowhere near, and after one that stands two places on."""
        copies = SourceCopy()
        for answer in answers:
            chance(copies.reading(as_tokens([*source.encode()]), 1), answer)
        return tuple(chance(copies.reading(as_tokens([*source.encode()]), 1), end) for end in (b"one #", b"one w"))  # type: ignore[return-value]

    replaced = source.replace("e", "#").encode()  # each goes on at once
    foreign = [source[:n].encode() + b"#%&$" + source[n + 4 :].encode() for n in range(4, 40, 3)]  # none does
    at_once, in_the_end = learnt([replaced]), learnt(foreign)
    assert at_once[0] > 0.6 > 0.4 > in_the_end[0]
    assert abs(at_once[1] - in_the_end[1]) < 0.2  # the other kind of edit is another matter
