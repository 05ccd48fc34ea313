"""Encoder-decoder models: the source is read once, everything else is as for decoders, and drafts change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from enumerate_randomness import LazyRng, distribution_of
from enumerated_loop import (  # noqa: F401 - a fixture among them
    BEGIN,
    POLICIES,
    SETTINGS,
    SOURCE,
    V,
    answer_distribution,
    run_answer,
    still_clock,
    total_variation,
)

from pilotfish.runtime.cache.policies import policy_by_name
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits
from pilotfish.runtime.errors import AbilityError, ChatTemplateError, ContextFullError, OptionError
from pilotfish.runtime.interfaces import EncoderInfo, Proposer, Tokens
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH, RowRule
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.draft_weights import DraftWeights
from pilotfish.runtime.speculation.proposers import SourceCopy, Suffix
from pilotfish.testing.toy import ToyEncoderDecoderSession, ToyWeights
from pilotfish.testing.toy_model import END, START, byte_tokenizer, toy_model, toy_weights

WANTED = 3


def readers(source: Tokens, start: int) -> dict[str, tuple[Proposer, ...]]:
    copy, suffix = SourceCopy().reading(source, start), Suffix().reading(source, start)
    return {
        "copy": (copy,),
        "suffix": (suffix,),
        "both": (copy, suffix),
        "wrong": (SourceCopy().reading(1 - source % 2, 0),),
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("proposers", ["copy", "suffix", "both", "wrong"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_copies_of_the_source_do_not_change_the_distribution(settings: str, proposers: str, policy: str) -> None:
    sampling = SETTINGS[settings]

    def run(rng: LazyRng, rows: RowRule = ANY_WIDTH) -> tuple[int, ...]:
        drafters = readers(SOURCE, len(BEGIN))[proposers]
        return run_answer(rng, sampling, drafters, policy, rows, Limits(max_new_tokens=WANTED))

    expected = answer_distribution(sampling, itertools.product(range(V), repeat=WANTED))
    assert total_variation(distribution_of(run), expected) <= 1e-12
    assert total_variation(distribution_of(lambda rng: run(rng, RowRule((2, 3, 4)))), expected) <= 1e-12


TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on."


def answers(text: str, copying: float, **options: object) -> list[tuple[tuple[int, ...], int]]:
    """Tokens and accepted drafts of: greedy decoding, and three seeds."""
    found = []
    with toy_model(toy_weights(copying), **options) as model:  # type: ignore[arg-type]
        for seed in (None, 1, 2, 3):
            temperature = None if seed is None else 1.0
            result = model.generate(text, max_new_tokens=90, seed=seed, temperature=temperature)
            found.append((result.token_ids, result.stats.accepted))
    return found


@pytest.mark.parametrize("copying", [0.0, 5.0, 8.0, 20.0])
def test_the_same_text_with_and_without_drafts(copying: float) -> None:
    plain = [tokens for tokens, _ in answers(TEXT, copying, plain=True)]
    for policy in (None, Fixed(5)):
        drafted = answers(TEXT, copying, policy=policy)
        assert [tokens for tokens, _ in drafted] == plain
    assert copying < 8 or drafted[0][1] > 20
    assert len(set(plain)) == (1 if copying == 20 else 4)


def test_a_model_of_two_row_classes_stays_in_one() -> None:
    texts = []
    for plain in (True, False):
        with toy_model(toy_weights(6.0, row_noise=0.5), plain=plain) as model:
            result = model.generate(TEXT, max_new_tokens=60)
            assert {r.width for r in result.rounds} <= set(model.calibration.rows.rule().widths) - {1}
            texts.append(result.token_ids)
    assert texts[0] == texts[1]


def test_copying_is_drafted_and_ends_with_the_source() -> None:
    with toy_model(toy_weights()) as model:
        result = model.generate(TEXT)
        assert result.text == TEXT and result.finish_reason == "stop" and result.token_ids[-1] == END
        assert {r.proposer for r in result.rounds} <= {"source-copy", None}
        assert result.stats.n_prompt == len(TEXT) + 1 and result.stats.n_tokens == len(TEXT) + 1
        assert result.stats.n_rounds < 20


def test_a_source_is_read_once() -> None:
    with toy_model(toy_weights()) as model:
        session = model._sequence.session
        assert isinstance(session, ToyEncoderDecoderSession)
        first = model.generate(TEXT)
        again = model.generate(TEXT, temperature=1.0, seed=3)
        assert (first.stats.n_reused, again.stats.n_reused) == (0, len(TEXT) + 1)
        assert session.n_encoded == 1
        assert model.generate("another text").text == "another text"
        assert model.generate(TEXT).token_ids == first.token_ids
        assert session.n_encoded == 3


def test_stop_strings_limits_and_cancels() -> None:
    with toy_model(toy_weights()) as model:
        assert model.generate(TEXT, stop=["fox"]).text == "the quick brown "
        assert model.generate(TEXT, stop=[ord("q")]).token_ids == tuple(b"the q")
        short = model.generate(TEXT, max_new_tokens=5)
        assert (short.text, short.finish_reason) == ("the q", "length")
        stream = model.stream(TEXT)
        assert next(iter(stream)) and not stream.close()  # type: ignore[func-returns-value]
        assert model.generate(TEXT, max_new_tokens=None).text == TEXT
    with toy_model(toy_weights(0.0), max_context=40) as model:  # shorter than the default length of an answer
        result = model.generate(TEXT)
        assert result.finish_reason == "length" and result.stats.n_tokens == 40 + 2 - 1 - model._sequence.rows.minimum
        with pytest.raises(ContextFullError, match="max_new_tokens is 256"):
            model.generate(TEXT, max_new_tokens=256)
    with toy_model(toy_weights()) as model:
        seen: list[tuple[int, int]] = []
        for _ in model.stream("a text", progress=lambda done, n: seen.append((done, n))):
            pass
        assert seen == [(7, 7)]


REFUSED: dict[str, tuple[Callable[..., object], type[Exception], str]] = {
    "empty": (lambda m: m.generate(""), OptionError, "source is empty"),
    "too long": (lambda m: m.generate("x" * 40), ContextFullError, "41 tokens.*reads 40 at most.*[Ss]horten"),
    "too much asked": (lambda m: m.generate("x", max_new_tokens=2000), ContextFullError, "fewer new tokens"),
    "chat": (lambda m: m.chat(), ChatTemplateError, "no chat template.*generate"),
    "messages": (
        lambda m: m.generate([{"role": "user", "content": "x"}]),
        ChatTemplateError,
        "reads one text and has no chat template.*give it a text",
    ),
    "sound": (lambda m: m.generate(np.zeros((4, 9), dtype=np.float32)), OptionError, "takes a text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_and_changes_nothing(name: str) -> None:
    ask, kind, says = REFUSED[name]
    with toy_model(toy_weights(source_limit=40)) as model:
        expected = model.generate("some text").token_ids
        with pytest.raises(kind, match=says):
            ask(model)
        assert model._sequence.tokens.tolist() == [START, *expected[:-1]]
        assert model.generate("some text").token_ids == expected


def test_a_model_that_listens() -> None:
    encoder = EncoderInfo(decoder_start=(START,), source_limit=30, source_kind="audio", bins=8)
    sounds = [np.random.default_rng(seed).normal(size=(8, 30)).astype(np.float32) for seed in (0, 1)]
    found = []
    for plain in (True, False):
        with toy_model(toy_weights(0.0, encoder=encoder), plain=plain) as model:
            results = [model.generate(sound, max_new_tokens=12) for sound in sounds]
            found.append([r.token_ids for r in results])
            assert results[0].stats.n_prompt == 30
            with pytest.raises(OptionError, match="takes sound, an array"):
                model.generate("a text")
            with pytest.raises(OptionError, match=r"features, \(8, frames\)"):
                model.generate(np.zeros((7, 30), dtype=np.float32))
            longer = np.concatenate(sounds, axis=1)  # is heard in windows
            both = model.generate(longer, max_new_tokens=12).token_ids
            assert both == (*results[0].token_ids, *results[1].token_ids)
            with pytest.raises(OptionError, match="sound has no template"):
                model.generate(sounds[0], raw=True)
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_a_smaller_model_of_the_kind_drafts() -> None:
    texts = (TEXT, "b" * 9)
    with toy_model(toy_weights(6.0), plain=True) as model:
        expected = [model.generate(t, max_new_tokens=40).token_ids for t in texts]
    draft = DraftWeights(toy_weights(6.0, seed=0), 1e-6)
    with toy_model(toy_weights(6.0), Fixed(4), draft=draft, proposers=()) as model:
        found = [model.generate(t, max_new_tokens=40) for t in texts]
        assert [r.token_ids for r in found] == expected  # it is the model itself: all is accepted
        assert all(r.stats.accepted == r.stats.drafted >= 8 for r in found)
    with toy_model(toy_weights(6.0), Fixed(4), draft=DraftWeights(toy_weights(5.0, seed=1), 1e-6)) as model:
        assert model.generate(TEXT, max_new_tokens=40).token_ids == expected[0]


def test_drafts_of_the_other_kind_are_refused() -> None:
    decoder = ToyWeights(258, context_length=1024)
    with pytest.raises(OptionError, match=r"is a decoder.*encoder-decoder.*source"):
        toy_model(toy_weights(), draft=DraftWeights(decoder, 1e-6))
    with pytest.raises(OptionError, match=r"is an encoder-decoder model.*decoder.*draft=None"):
        toy_model(decoder, draft=DraftWeights(toy_weights(), 1e-6))


def test_a_compressed_cache_keeps_the_source() -> None:
    policy = "sinks:budget=12,window=6,every=8"
    texts = []
    for plain in (True, False):
        with toy_model(toy_weights(6.0), plain=plain, cache=policy_by_name(policy)) as model:
            result = model.generate(TEXT * 2, max_new_tokens=120)
            texts.append(result.token_ids)
            assert result.stats.kv_entries <= 20
    assert texts[0] == texts[1] and bytes(t for t in texts[0] if t < 256).count(b"o") > 5


def test_decoders_refuse_a_source() -> None:
    session = ToyWeights().session()
    with pytest.raises(AbilityError, match="onnx or the openvino engine"):
        CachedSequence(session).encode(SOURCE)


def test_a_source_is_framed_as_its_tokenizer_says() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.encode_source("ab</s>").tolist() == [*b"ab</s>", END]
    assert tokenizer.encode("ab").tolist() == [*b"ab"]
