"""A model that thinks: its answer is the text, its thoughts stand apart, and drafts change neither."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish import Model, Sampling
from pilotfish.runtime.interfaces import Floats, Tokens
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.text.chat_template import ChatTemplate
from pilotfish.testing.toy import ToyWeights
from pilotfish.testing.toy_model import END, N_TOKENS, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}a:"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
SAID = "<think>the the the the</think>\n\nthe the the the"


@pytest.fixture(params=[None, Fixed(4)], ids=["plain", "drafts"])
def model(request: pytest.FixtureRequest) -> Model:
    weights = ToyWeights(vocab_size=N_TOKENS, context_length=512)
    session = weights.session(64)
    return Model(weights, byte_tokenizer(), ChatTemplate(TEMPLATE), calibrate(session), policy=request.param)


def saying(text: str, n_prompt: int) -> Sampling:
    """Settings under which nothing but this text can be said."""
    ids = [*text.encode(), END]

    def only(logits: Floats, context: Tokens) -> Floats:
        allowed = np.full_like(logits, -1e9)
        allowed[ids[min(len(context) - n_prompt, len(ids) - 1)]] = 0.0
        return allowed

    return Sampling(processors=(only,))


def test_thoughts_stand_apart(model: Model) -> None:
    sampling = saying(SAID, len(model.encode("hi")))
    stream = model.stream("hi", sampling=sampling, max_new_tokens=100)
    pieces, thought = [], []
    for piece in stream:
        pieces.append(piece)
        thought.append(stream.thinking)
    result = stream.result
    assert result is not None and result.finish_reason == "stop"
    assert "".join(pieces) == result.text == "the the the the"
    assert result.thinking == stream.thinking == "the the the the"
    assert any(t and len(t) < len(result.thinking) for t in thought)  # it could be read while it grew
    assert len(result.token_ids) == len(SAID) + 1
    assert result.stats.n_rounds <= len(result.token_ids)


def test_an_answer_without_thoughts_is_as_it_was(model: Model) -> None:
    result = model.generate("hi", sampling=saying(" yes", len(model.encode("hi"))), max_new_tokens=20)
    assert (result.text, result.thinking) == (" yes", None)


def test_thoughts_that_fill_the_answer(model: Model) -> None:
    result = model.generate("hi", sampling=saying(SAID, len(model.encode("hi"))), max_new_tokens=12)
    assert (result.text, result.thinking, result.finish_reason) == ("", "the t", "length")


def test_a_conversation_remembers_answers_alone(model: Model) -> None:
    chat = model.chat()
    answer = chat.send("hi", max_new_tokens=5, thinking=False)
    assert answer.thinking is None
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    assert chat.messages[1]["content"] == answer.text


def test_the_switch_reaches_the_template(model: Model) -> None:
    on = model.generate("hi", max_new_tokens=1)
    off = model.generate("hi", max_new_tokens=1, thinking=False)
    assert off.stats.n_prompt == on.stats.n_prompt + len("<think></think>")
