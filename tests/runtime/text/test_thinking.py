"""Thoughts are told apart from answers, however they arrive, and models that have a switch are told what is wanted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import metadata

from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.text.chat_template import ChatTemplate
from pilotfish.runtime.text.prompts import task_of
from pilotfish.runtime.text.thinking import (
    GEMMA,
    HARMONY,
    THINK,
    Marks,
    Thoughts,
    begins_inside,
    marks_of,
    special_marks,
    switched,
)
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

THINKS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "assistant: {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif forced is defined %}<think>\n{% endif %}"
)
FINAL = "<|channel|>final<|message|>"
OTHERS = {
    f"<|channel|>analysis<|message|>because<|end|><|start|>assistant{FINAL}yes": (HARMONY, "because", "yes"),
    f"{FINAL}yes": (HARMONY, None, "yes"),
    "yes": (HARMONY, None, "yes"),
    "<|channel|>analysis<|message|>it ran out<|end|>": (HARMONY, "it ran out<|end|>", ""),
    "<|channel|>commentary to=x": (HARMONY, None, "<|channel|>commentary to=x"),
    "<|channel>thought\nbecause\n<channel|>yes": (GEMMA, "because", "yes"),
    "<|channel>thought\n<channel|>yes": (GEMMA, None, "yes"),
    "yes <channel|>": (GEMMA, None, "yes <channel|>"),
}
CASES = {
    "<think>because</think>yes": ("because", "yes"),
    "\n<think>\nbecause\n</think>\n\nyes": ("because", "yes"),
    "yes": (None, "yes"),
    "  yes": (None, "  yes"),
    "<thin air": (None, "<thin air"),
    "write <think>x</think>": (None, "write <think>x</think>"),
    "<think>a</think>b<think>c</think>": ("a", "b<think>c</think>"),
    "<think>it ran out": ("it ran out", ""),
    "<think>a </thin b</think> c": ("a </thin b", "c"),
    "<think></think>\n\nyes": (None, "yes"),
    "<think>\n": (None, ""),
    "": (None, ""),
    "   ": (None, "   "),
    "<think>a</think>\n": ("a", ""),
}


def parted(pieces: list[str], marks: Marks = THINK, *, inside: bool = False) -> tuple[str | None, str]:
    thoughts = Thoughts(marks, inside=inside)
    said = [thoughts.push(piece) for piece in pieces]
    said.append(thoughts.finish())
    assert "".join(said) == thoughts.said
    return thoughts.thought, thoughts.said


@pytest.mark.parametrize("text", CASES)
def test_where_thoughts_end_does_not_depend_on_the_pieces(text: str) -> None:
    for n in range(1, len(text) + 2):
        assert parted([text[i : i + n] for i in range(0, len(text), n)]) == CASES[text], n


@pytest.mark.parametrize("text", OTHERS)
def test_channels_of_thoughts_are_parted_alike(text: str) -> None:
    marks, thought, said = OTHERS[text]
    for n in range(1, len(text) + 1):
        assert parted([text[i : i + n] for i in range(0, len(text), n)], marks) == (thought, said), n


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", "a", "\n", " "])), st.booleans())
def test_nothing_is_lost_and_nothing_invented(pieces: list[str], inside: bool) -> None:
    whole = parted(["".join(pieces)], inside=inside)
    assert parted(pieces, inside=inside) == whole
    text, (thought, said) = "".join(pieces), whole
    assert text.endswith(said) and (thought is None or thought in text)
    if not inside and not text.lstrip().startswith("<think>"):
        assert (thought, said) == (None, text)


def test_a_prompt_may_begin_the_thoughts() -> None:
    assert parted(["be", "cause</th", "ink>\n\nyes"], inside=True) == ("because", "yes")
    assert parted(["it ran", " out"], inside=True) == ("it ran out", "")
    tokenizer = tokenizer_from_gguf(metadata())
    for end, inside in (("<think>\n", True), ("<think>", True), ("<think>\n\n</think>\n\n", False), ("hello", False)):
        assert begins_inside(THINK, tokenizer, tokenizer.encode(f"hello {end}")) is inside


def test_the_template_is_told() -> None:
    template = ChatTemplate(THINKS)
    assert marks_of(template) is THINK and marks_of(ChatTemplate("{{ messages }}")) is None and marks_of(None) is None
    assert marks_of(ChatTemplate("<|channel|>analysis<|message|>{{ messages }}")) is HARMONY
    assert marks_of(ChatTemplate("{% if enable_thinking %}<|channel>thought\n<channel|>{% endif %}")) is GEMMA
    tokenizer = tokenizer_from_gguf(metadata())

    def text(thinking: bool | None) -> str:
        task = task_of("hello", False, tokenizer, template, None, thinking=thinking)
        assert task.thoughts is THINK
        return tokenizer.decode(task.context)

    assert text(None) == text(True) == "user: hello\nassistant: "
    assert text(False) == "user: hello\nassistant: <think>\n\n</think>\n\n"
    assert switched(ChatTemplate("{% if thinking %}{% endif %}"), False) == {"thinking": False}


def test_a_switch_that_is_not_there_is_refused() -> None:
    tokenizer = tokenizer_from_gguf(metadata())
    for template in (ChatTemplate("{{ messages }}"), None):
        with pytest.raises(OptionError, match="no switch for it"):
            task_of("hello", False, tokenizer, template, None, thinking=False)
    with pytest.raises(OptionError, match="raw=True"):
        task_of("hello", True, tokenizer, ChatTemplate(THINKS), None, thinking=True)


def test_what_continues_a_text_is_not_parted() -> None:
    tokenizer = tokenizer_from_gguf(metadata())
    assert task_of("hello", True, tokenizer, ChatTemplate(THINKS), None).thoughts is None
    assert np.array_equal(
        task_of("hello", True, tokenizer, ChatTemplate(THINKS), None).context, tokenizer.encode("hello")
    )


def test_marks_that_are_special_tokens_are_shown_to_be_looked_for() -> None:
    known = metadata()
    tokens, types = list(known["tokenizer.ggml.tokens"]), list(known["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    own = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    tokenizer = tokenizer_from_gguf(metadata(tokens=tokens + own, token_type=types + [3] * 4))
    assert special_marks(HARMONY, tokenizer) == frozenset(range(len(tokens), len(tokens) + 4))
    assert special_marks(THINK, tokenizer) == frozenset()
