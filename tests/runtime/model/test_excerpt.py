"""Questions about a text longer than the context: the parts that are kept, what they cost, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_weights import smollm2

import pilotfish
from pilotfish import Model, excerpt
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.scoring import surprisal
from pilotfish.runtime.errors import ContextFullError, OptionError
from pilotfish.runtime.interfaces import Floats
from pilotfish.runtime.model.excerpt import default_budget
from pilotfish.runtime.text.segments import cut
from pilotfish.testing.toy import ToyWeights
from pilotfish.testing.toy_model import N_TOKENS, toy_model, toy_weights

NEEDLE = "The code of the old lighthouse is QX7.\n"
QUESTION = "What is the code of the old lighthouse?"
FILLER = [
    f"Line {i} is about {word} and nothing else.\n"
    for i, word in enumerate(["rain", "salt", "wool", "iron", "corn"] * 12)
]


class Repeating(ToyWeights):
    """Expects what followed the last three tokens when they were seen before, as a model does that reads."""

    def logits(self, visible: tuple[Any, ...], width: int, source: tuple[int, ...] = ()) -> Floats:
        tokens = [entry.token for entry in visible]
        found = np.zeros(self.info.vocab_size, dtype=np.float32)
        for i in range(len(tokens) - 3):
            if tokens[i : i + 3] == tokens[-3:]:
                found[tokens[i + 3]] = 8.0
        return found


def reader(context_length: int = 512) -> Model:
    return toy_model(Repeating(vocab_size=N_TOKENS, context_length=context_length), plain=True)


def document(at: int) -> str:
    return "".join([*FILLER[:at], NEEDLE, *FILLER[at:]])


@given(st.text(alphabet='ab .!\n"é', max_size=200), st.integers(1, 20))
@settings(max_examples=200)
def test_segments_are_the_document_and_no_longer_than_allowed(text: str, size: int) -> None:
    parts = cut(text, size, len)
    assert "".join(part.text for part in parts) == text
    assert [text[part.start : part.end] for part in parts] == [part.text for part in parts]
    assert all(0 < part.n_tokens == len(part.text) <= size for part in parts)


def test_sentences_are_not_cut() -> None:
    parts = cut('He said "no." She left. It rained\nall day. ' * 5, 60, len)
    assert all(part.text.rstrip()[-1] in '."' or part.text.endswith("\n") for part in parts)


@pytest.mark.parametrize("score", ["likelihood", "entropy"])
@pytest.mark.parametrize("at", [0, 23, 60])
def test_the_part_that_answers_is_kept_wherever_it_is(at: int, score: Any) -> None:
    text = document(at)
    assert len(text) > 4 * 512
    with reader() as model:
        found = excerpt(model, text, QUESTION, segment=100, score=score, raw=True)
        best = max(found.segments, key=lambda part: part.score or 0.0)
        if score == "likelihood":
            assert NEEDLE in best.text
            assert any(NEEDLE in part.text for part in found.kept)
        assert [part.start for part in found.kept] == sorted(part.start for part in found.kept)
        assert best in found.kept and found.prompt.endswith(f"\n\n{QUESTION}")
        assert len(model.encode(found.prompt, raw=True)) <= 512 * 3 // 4
        assert all(part.text.strip() in found.prompt for part in found.kept)
        assert found.prompt.count("[...]") == sum(
            a.end < b.start for a, b in zip(found.kept, found.kept[1:], strict=False)
        ) + (found.kept[0].start > 0)
        answer = model.generate(found.prompt, raw=True, max_new_tokens=4)
        assert answer.stats.n_prompt == len(model.encode(found.prompt, raw=True))


def test_scores_are_what_the_model_says_of_each_part_alone() -> None:
    with reader() as model:
        found = excerpt(model, document(5), QUESTION, segment=100, raw=True)
        prompts = [model.encode(f"{part.text.strip()}\n\n{QUESTION}", raw=True) for part in found.segments]
        assert found.n_read == sum(map(len, prompts))
        n = len(model.encode(f"\n{QUESTION}", raw=True))
        for part, prompt in zip(found.segments[:4], prompts, strict=False):
            session: Any = model.target.session(len(prompt))
            logits = session.forward(prompt, n_logits=len(prompt)).logits.astype(np.float64)
            distribution = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            after = prompt[-n:]
            assert part.score == pytest.approx(distribution[np.arange(-n - 1, -1), after].mean(), rel=1e-5)


def test_what_fits_is_kept_whole_and_not_read() -> None:
    ticks: list[Any] = []
    with reader() as model:
        found = excerpt(model, NEEDLE, QUESTION, raw=True, segment=64, progress=lambda *done: ticks.append(done))
        assert found.n_read == 0 and not ticks and found.kept == found.segments
        assert found.prompt == f"{NEEDLE.strip()}\n\n{QUESTION}" and found.kept[0].score is None


def test_a_prompt_whose_size_nobody_chose_is_soon_read_and_leaves_room() -> None:
    assert default_budget(6144, 8192, 40, 256) == 2048  # a quarter of the context
    assert default_budget(98_304, 131_072, 40, 256) == 2048  # however large it is
    assert default_budget(3072, 4096, 40, 256) == 40 + 4 * 264  # four segments at least
    assert default_budget(768, 1024, 40, 256) == 768  # if they fit
    assert default_budget(6144, 8192, 40, 1024) == 40 + 4 * 1032
    with reader(context_length=1024) as model:
        long, short = document(30) * 2, document(30)[:600]
        found = excerpt(model, long, QUESTION, segment=32, raw=True)
        assert 128 < len(model.encode(found.prompt, raw=True)) <= 256 and found.n_read > 0
        # More than a quarter of the context, and nothing is gained by reading it.
        whole = excerpt(model, short, QUESTION, segment=32, raw=True)
        assert whole.n_read == 0 and len(model.encode(whole.prompt, raw=True)) > 512
        for new_tokens in (300, 700):
            roomy = excerpt(model, short, QUESTION, segment=32, raw=True, new_tokens=new_tokens)
            assert roomy.n_read == (0 if new_tokens == 300 else sum_of_reads(model, short))
            model.generate(roomy.prompt, raw=True, max_new_tokens=new_tokens)  # fits
        with pytest.raises(ContextFullError, match="Ask for fewer new tokens"):
            excerpt(model, long, QUESTION, segment=32, raw=True, new_tokens=960)


def sum_of_reads(model: Model, text: str) -> int:
    return sum(
        len(model.encode(f"{part.text.strip()}\n\n{QUESTION}", raw=True))
        for part in cut(text, 32, lambda said: len(model.tokenizer.encode(said, bos=False)))
    )


def test_the_model_keeps_its_cache_and_reading_can_be_stopped() -> None:
    class EnoughError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        if done > total / 2:
            raise EnoughError

    with reader() as model:
        model.generate("Rain. " * 8, raw=True, max_new_tokens=2)
        with pytest.raises(EnoughError):
            excerpt(model, document(3), QUESTION, segment=100, raw=True, progress=stop)
        excerpt(model, document(3), QUESTION, segment=100, raw=True)
        assert model.generate("Rain. " * 8, raw=True, max_new_tokens=2).stats.n_reused > 40


def test_what_cannot_be_is_refused() -> None:
    with reader() as model:
        for budget, segment, length in ((None, 8, 1), (None, 1000, 1), (60, 64, 1), (600, 64, 1), (None, 64, 40)):
            with pytest.raises(ContextFullError, match="smaller segments, or shorten the question"):
                excerpt(model, document(1), QUESTION * length, budget=budget, segment=segment, raw=True)
        for text, question, what in (("", QUESTION, "document"), (document(1), " ", "question")):
            with pytest.raises(OptionError, match=f"the {what} is empty"):
                excerpt(model, text, question, raw=True)
        with pytest.raises(OptionError, match="'likelihood' or 'entropy'"):
            excerpt(model, document(1), QUESTION, score="attention", raw=True)  # type: ignore[arg-type]
    with toy_model(toy_weights()) as model, pytest.raises(OptionError, match="as its source"):
        excerpt(model, document(1), QUESTION)


def test_surprisal_is_that_of_one_pass() -> None:
    weights = ToyWeights(vocab_size=7, context_length=256)
    tokens = np.random.default_rng(1).integers(0, 7, 200)
    logits = weights.session().forward(tokens, n_logits=200).logits.astype(np.float64)
    distribution = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    losses, last = surprisal(CachedSequence(weights.session()), tokens, 30)
    assert losses == pytest.approx(-distribution[np.arange(30, 199), tokens[31:]], rel=1e-5)
    assert np.array_equal(last, logits[-1].astype(np.float32))


@pytest.mark.real
@pytest.mark.slow
def test_a_number_is_found_in_a_text_twice_as_long_as_the_context() -> None:
    with pilotfish.load(smollm2(), "onnx", draft=None, max_context=768) as model:
        lines = [f"On day {i} the weather was {w} and the ship stayed in port.\n" for i, w in enumerate(["fair"] * 90)]
        text = "".join([*lines[:30], "The secret number of the lighthouse is 48213.\n", *lines[30:]])
        assert len(model.encode(text, raw=True)) > 1.5 * 768
        found = excerpt(model, text, "What is the secret number of the lighthouse?", segment=128, budget=500)
        assert "48213" in model.generate(found.prompt, max_new_tokens=24).text
