"""Prompts and what answers go on from: first spaces, special tokens in raw prompts, and where an answer ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_tokenizers import gguf_metadata

from pilotfish import Sampling
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.interfaces import EncoderInfo
from pilotfish.runtime.model.model import Model
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.speculation.draft_length import RenewalReward
from pilotfish.runtime.text.chat_template import ChatTemplate, turn_end
from pilotfish.runtime.text.prompts import task_of
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf
from pilotfish.testing.toy import ToyWeights
from pilotfish.testing.toy_model import byte_tokenizer

TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{{ '<|done|>\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MORE = ("<|user|>", "<|assistant|>", "<|done|>")


def vocabulary(kind: int = 3, **changes: object) -> Tokenizer:
    """A SentencePiece vocabulary with tokens for turns behind it, of this type."""
    metadata: dict[str, Any] = gguf_metadata()
    metadata["tokenizer.ggml.tokens"] += MORE
    metadata["tokenizer.ggml.token_type"] += [kind] * len(MORE)
    metadata["tokenizer.ggml.scores"] += [0.0] * len(MORE)
    return tokenizer_from_gguf(metadata | changes)


def toy(tokenizer: Tokenizer, template: str | None = None, **options: Any) -> Model:
    weights = ToyWeights(**{"vocab_size": tokenizer.vocab_size, "context_length": 256, **options})
    session = weights.session(64)
    measured = calibrate(session)
    session.close()
    known = None if template is None else ChatTemplate(template)
    return Model(weights, tokenizer, known, measured, policy=RenewalReward())


def said(model: Model, prompt: Any, token: str, **options: Any) -> list[str]:
    """The whole answer of two such tokens, and the same streamed, with and without a stop text."""
    wanted = model.tokenizer.id_of(token)
    assert wanted is not None
    sampling = Sampling(logit_bias={wanted: 1000.0})
    found = [model.generate(prompt, sampling=sampling, max_new_tokens=2, **options).text]
    for stop in ((), ("stop here",)):
        found.append("".join(model.stream(prompt, sampling=sampling, max_new_tokens=2, stop=stop, **options)))
    return found


def test_an_answer_to_a_raw_prompt_goes_on_in_its_text() -> None:
    with toy(vocabulary(), TURNS) as model:
        assert said(model, "a", "▁the", raw=True) == [" the the"] * 3
        assert said(model, "a", "▁", raw=True) == ["  "] * 3  # a line that is indented keeps all of it
        assert said(model, "<s>", "▁the", raw=True) == [" the the"] * 3  # which is text here
    with toy(vocabulary()) as model:  # without a template every text is continued
        assert said(model, "a", "▁the") == [" the the"] * 3


def test_an_answer_that_is_a_text_of_its_own_begins_without_a_space() -> None:
    with toy(vocabulary(), TURNS) as model:
        assert said(model, "a", "▁the") == ["the the"] * 3
        assert said(model, [{"role": "user", "content": "a"}], "▁the") == ["the the"] * 3
        assert said(model, "", "▁the", raw=True) == ["the the"] * 3
        assert said(model, "<s>", "▁the", raw=True, special=True) == ["the the"] * 3
    encoder = EncoderInfo(decoder_start=(1,), source_limit=64)
    with toy(vocabulary(), encoder=encoder) as model:
        assert said(model, "a", "▁the") == ["the the"] * 3


def test_prompt_and_answer_are_decoded_as_one_text() -> None:
    tokenizer = vocabulary()
    prompt, answer = tokenizer.encode("the a").tolist(), [int(i) for i in tokenizer.encode("the ahe", bos=False)]
    stream = tokenizer.stream(behind=prompt)
    assert tokenizer.decode(prompt) + stream.push(answer) + stream.finish() == tokenizer.decode([*prompt, *answer])
    assert byte_tokenizer().stream(behind=[65]).push([32]) == " "


def test_a_raw_prompt_may_hold_special_tokens_where_it_says_so() -> None:
    tokenizer = vocabulary()
    user, the = tokenizer.id_of("<|user|>"), tokenizer.id_of("▁the")
    with toy(tokenizer, TURNS) as model:
        assert model.encode("<|user|>the", raw=True, special=True).tolist() == [1, user, the]
        assert user not in model.encode("<|user|>the", raw=True)
        asked = {"raw": True, "max_new_tokens": 2, "seed": 1}
        assert model.generate("<|user|>the", special=True, **asked).stats.n_prompt == 3
        assert model.generate("<|user|>the", **asked).stats.n_prompt > 3
        for prompt in ("<|user|>the", [{"role": "user", "content": "<|user|>"}]):
            for call in (model.generate, model.stream, model.encode):
                with pytest.raises(OptionError, match=r"special=True.*raw=True"):
                    call(prompt, special=True)  # type: ignore[operator]
    with toy(tokenizer, encoder=EncoderInfo(decoder_start=(1,), source_limit=64)) as model:
        assert user in model.encode("the <|user|>", raw=True, special=True)
        assert user not in model.encode("the <|user|>", raw=True)


def test_sound_holds_no_special_tokens() -> None:
    listening = EncoderInfo(decoder_start=(1,), source_kind="audio", bins=80)
    with pytest.raises(OptionError, match="special=True is about texts"):
        task_of(np.zeros(16, dtype=np.float32), False, byte_tokenizer(), None, listening, special=True)


def test_an_answer_ends_at_what_the_template_puts_behind_one() -> None:
    tokenizer = vocabulary()
    done = tokenizer.id_of("<|done|>")
    assert done is not None and done not in tokenizer.eos_ids
    with toy(tokenizer, TURNS) as model:
        assert model.ends == {2, done}
        result = model.generate("a", sampling=Sampling(logit_bias={done: 1000.0}), max_new_tokens=4)
        assert (result.text, result.token_ids, result.finish_reason) == ("", (done,), "stop")
    with toy(tokenizer) as model:
        assert model.ends == tokenizer.eos_ids


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m['content'] + ' \n <|done|>\n<|user|>' }}{% endfor %}", "<|done|>"),
        ("{% for m in messages %}{{ '<|user|>' + m['content'] }}{% endfor %}", None),
        ("{% for m in messages %}{{ m['content'] + ' the </s>' }}{% endfor %}", None),
        ("{{ raise_exception('no assistant') }}", None),
        ("{{ messages[0]['content'] }}<|done|>", None),  # it leaves out what was said
    ],
)
def test_what_stands_behind_a_turn(template: str, end: str | None) -> None:
    tokenizer = vocabulary()
    assert turn_end(tokenizer, ChatTemplate(template)) == (None if end is None else tokenizer.id_of(end))
