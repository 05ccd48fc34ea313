"""Chat templates in the style of well-known families: every shape of conversation is rendered as transformers does.

The templates are short ones of our own, made of the constructs that those of the families are made of.
"""

from __future__ import annotations

import datetime
import functools
import json
from pathlib import Path
from typing import Any

import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pilotfish.runtime.errors import ChatTemplateError
from pilotfish.runtime.text.chat_template import ChatTemplate

FOLDER = Path(__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
assert TEMPLATES, f"no templates lie in {FOLDER}"
READ_PARTS = frozenset({"tekken", "gemma"})
USER, SYSTEM = {"role": "user", "content": " How hot is it?\n"}, {"role": "system", "content": "Be <brief> & kind."}
SAID = {"role": "assistant", "content": "<think>\nHot.\n</think>\n\nIt is hot."}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "heat", "arguments": {"place": "Zürich", "b": [1, None, True], "a": {"n": 12_345_678}}},
}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "heat", "content": '{"heat": "31 °C"}'}
PARTS = {"role": "user", "content": [{"type": "text", "text": " One. "}, {"type": "text", "text": "Two."}]}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, SAID, USER],
    "system late": [USER, SAID, SYSTEM, USER],
    "users in a row": [USER, USER, SAID, USER],
    "assistant first": [SAID, USER],
    "assistant last": [USER, SAID],
    "assistants in a row": [USER, SAID, SAID],
    "system alone": [SYSTEM],
    "calls": [USER, CALLS],
    "calls, content None": [USER, {**CALLS, "content": None}],
    "calls, content empty": [USER, {**CALLS, "content": ""}],
    "calls, content": [USER, {**CALLS, "content": "Let me see."}],
    "two calls": [USER, {**CALLS, "content": None, "tool_calls": [CALL, CALL]}],
    "calls are None": [USER, {**SAID, "tool_calls": None}],
    "calls are none": [USER, {**SAID, "tool_calls": []}],
    "arguments as text": [USER, {**CALLS, "tool_calls": [{"function": {"name": "heat", "arguments": '{"a": 1}'}}]}],
    "result": [USER, CALLS, RESULT],
    "result, content None": [SYSTEM, USER, {**CALLS, "content": None}, RESULT],
    "result and answer": [USER, {**CALLS, "content": ""}, RESULT, RESULT, SAID, USER],
    "result of a call by another name": [USER, CALLS, {**RESULT, "role": "ipython"}, SAID],
    "parts": [PARTS],
    "parts after turns": [SYSTEM, USER, SAID, PARTS],
    "parts of a system": [{"role": "system", "content": PARTS["content"]}, USER],
    "no parts": [{"role": "user", "content": []}],
    "names": [{**USER, "name": "Ann", "extra": {"x": 1}}],
    "thought": [USER, {**SAID, "reasoning_content": "\nHm.\n", "tool_plan": "none"}, USER],
    "empty": [{"role": "user", "content": ""}],
}
TOOL = {
    "type": "function",
    "function": {"name": "heat", "description": "Heat & <cold>", "parameters": {"type": "object", "é": []}},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ask": {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"},
    "no tokens": {"add_generation_prompt": False},
    "tools": {"add_generation_prompt": True, "tools": [TOOL, TOOL], "bos_token": "<s>", "eos_token": "</s>"},
}


class Generation(jinja2.ext.Extension):
    """`{% generation %}` as transformers declares it, without what it is for."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inner"), [], [], body).set_lineno(lineno)

    def _inner(self, caller: Any) -> Any:
        return caller()


@functools.cache
def plain_template(source: str) -> jinja2.Template:
    """The template in an environment that is set up as transformers sets it up."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: (
        json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def plain_jinja(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """What jinja2 makes of a template."""
    return plain_template(source).render(messages=messages, **{"tools": None, "documents": None, **options})


def transformers_render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """What transformers' own function makes of it."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    text: str = utils.render_jinja_template(conversations=[messages], chat_template=source, **options)[0][0]
    return text


def expected(oracle: Any, family: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | None:
    """The oracle's text; None where the template refuses. Parts are one text for a template that cannot read them."""
    if family not in READ_PARTS:
        parts = [message.get("content") for message in messages]
        messages = [
            {**m, "content": "\n".join(p["text"] for p in c)} if isinstance(c, list) else m
            for m, c in zip(messages, parts, strict=True)
        ]
    try:
        return str(oracle(TEMPLATES[family], messages, **options))
    except (jinja2.TemplateError, TypeError):
        return None


@functools.cache
def template_of(family: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[family])


def ours(family: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | None:
    try:
        return template_of(family).render(messages, **options)
    except ChatTemplateError:
        return None


@pytest.mark.parametrize("oracle", [plain_jinja, transformers_render])
@pytest.mark.parametrize("family", TEMPLATES)
def test_every_shape_of_conversation_is_rendered_as_transformers_does(family: str, oracle: Any) -> None:
    differs = {
        (shape, name): (text, wanted)
        for shape, messages in SHAPES.items()
        for name, options in OPTIONS.items()
        if (text := ours(family, messages, options)) != (wanted := expected(oracle, family, messages, options))
    }
    assert not differs


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_matrix_is_rendered_and_not_only_refused(family: str) -> None:
    texts = [ours(family, messages, OPTIONS["ask"]) for messages in SHAPES.values()]
    assert sum(text is not None for text in texts) >= 10


def test_what_is_absent_is_absent_and_none_is_none() -> None:
    source = "{{ messages[1].content is defined }} {{ messages[1].content is none }} {{ bos_token is defined }}"
    for message, found in (
        (CALLS, "False False False"),
        ({**CALLS, "content": None}, "True True False"),
        ({**CALLS, "content": ""}, "True False False"),
    ):
        assert ChatTemplate(source).render([USER, message]) == found
    given = "{{ tools is none }} {{ documents is none }} {{ bos_token is defined }} {{ eos_token is defined }}"
    assert ChatTemplate(given).render([USER], bos_token="") == "True True True False"


def test_a_template_that_writes_out_lists_gets_one_text() -> None:
    for source in (
        "{{ messages[0].content }}",
        "{{ messages[0].content | tojson }}",
        "{{ 'x' + messages[0].content }}",
    ):
        text = ChatTemplate(source).render([PARTS])
        assert "One. \\nTwo." in text.replace("\n", "\\n") and "type" not in text
