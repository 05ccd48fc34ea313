"""Messages to the text and the tokens a chat model was trained on."""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from ..errors import ChatTemplateError
from ..interfaces import Tokens
from .template_sandbox import Sandbox, render
from .tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, object]  # {"role": "user", "content": "..."}

MAX_SOURCE_CHARS = 1_000_000
_ANSWER = "PILOTFISH"  # a word that no template says itself
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class ChatTemplate:
    """A model's chat template: a jinja2 program that came with the weights, and is trusted no more than they are."""

    def __init__(self, source: str) -> None:
        """Raises ChatTemplateError where the source is not a template."""
        self.source = source
        self._environment = Sandbox()
        if len(source) > MAX_SOURCE_CHARS:
            raise ChatTemplateError(
                f"the chat template has {len(source)} characters; more than {MAX_SOURCE_CHARS} are refused."
            )
        try:
            self._template = self._environment.compiled(source)
        except Exception as error:  # also what Python's own compiler says about deep nesting
            raise ChatTemplateError(
                f"the chat template that came with the model cannot be read: {_reason(error)}. Mend it there, or give "
                "the prompt as raw text."
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The text of a conversation, special tokens written out.

        The template is given what transformers' apply_chat_template() gives it: messages as they are, tools and
        documents as None where there are none, and no such name as bos_token where the model has no such token.
        Content in parts is handed over as it is to a template that reads parts, and else as one text, a line a part.
        add_generation_prompt: end where the assistant is to answer.
        tools: descriptions of functions, as JSON schemas. variables: what else the template knows, for example
            {"enable_thinking": False}.
        The text mixes the template's special tokens with whatever the messages say; encode_chat keeps them apart.
        Raises ChatTemplateError where messages are not messages, or the template refuses them, fails, or does not
        come to an end within a second.
        """
        said = checked(messages)
        if any(_in_parts(message) for message in said) and not self._reads_parts:
            said = [_joined(message) for message in said]
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        known = {
            "messages": said,
            "add_generation_prompt": add_generation_prompt,
            "tools": None if tools is None else list(tools),
            "documents": None,
            **{name: token for name, token in tokens.items() if token is not None},
        }
        try:
            return render(self._environment, self._template, {**known, **(variables or {})})
        except Exception as error:  # a template's expressions may raise anything
            raise ChatTemplateError(f"the chat template failed: {_reason(error)}. {_WAY_OUT}") from error

    @functools.cached_property
    def _reads_parts(self) -> bool:
        """Whether the template takes content in parts apart, instead of failing at it or writing out the list."""
        part = {"type": "text", "text": "a part"}
        try:
            known = {"messages": [{"role": "user", "content": [part]}], "add_generation_prompt": True, "tools": None}
            text = render(self._environment, self._template, {**known, "bos_token": "", "eos_token": ""})
        except Exception:  # it can do nothing with a list
            return False
        return part["text"] in text and repr(part["text"]) not in text and json.dumps(part["text"]) not in text


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, object]] | None = None,
    variables: Mapping[str, object] | None = None,
) -> Tokens:
    """Token ids of a conversation, (n,). Only the template's own words can become special tokens.

    A "<|im_end|>" that a message or a tool's description contains is encoded as the text it is. What a system says is
    put before the first user message where the template refuses it, or leaves it out. Raises ChatTemplateError and
    OptionError.
    """
    marks = _Marks(tokenizer.special_tokens)
    text = with_system(
        template.render,
        [marks.put_into(message) for message in checked(messages)],
        add_generation_prompt=add_generation_prompt,
        tools=None if tools is None else [marks.put_into(tool) for tool in tools],
        bos_token=_token(tokenizer, tokenizer.bos_id),
        eos_token=_token(tokenizer, tokenizer.eos_id),
        variables=variables,
    )
    pieces = [marks.restored(piece) if isinstance(piece, str) else piece for piece in tokenizer.split_special(text)]
    return tokenizer.encode_pieces(pieces, bos=False)  # a template writes the token itself where it is wanted


def with_system(render: Callable[..., str], messages: list[dict[str, object]], **known: object) -> str:
    """The text of a conversation that a template may not take as it is: some know no system, others no developer."""
    first, *rest = messages
    if first["role"] not in ("system", "developer"):
        return render(messages, **known)
    said = str(_joined(first).get("content") or "").strip()
    refusal: ChatTemplateError | None = None
    for shape in (messages, [{**first, "role": "system"}, *rest], _folded(said, rest)):
        try:
            text = "" if shape is None else render(shape, **known)
        except ChatTemplateError as error:
            refusal = refusal or error
            continue
        if text and (said in text or _heeds(render, shape, text, known)):
            return text
    if refusal is not None:
        raise refusal
    return render(messages, **known)


def _heeds(
    render: Callable[..., str], shape: list[dict[str, object]] | None, text: str, known: dict[str, object]
) -> bool:
    """Whether another system message gives another text: some are read for a switch (/no_think) and not written out."""
    if shape is None or shape[0]["role"] == "user":
        return False
    try:
        return render([{**shape[0], "content": _ANSWER}, *shape[1:]], **known) != text
    except ChatTemplateError:
        return True


def _folded(said: str, rest: list[dict[str, object]]) -> list[dict[str, object]] | None:
    """The conversation with what the system said before the first user message; None where none follows."""
    if not rest or rest[0]["role"] != "user":
        return None
    return [{**rest[0], "content": f"{said}\n\n{_joined(rest[0])['content']}"}, *rest[1:]]


def turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The special token that the template puts behind what the assistant said; None where it puts another thing there,
    or takes no such conversation."""
    try:
        text = template.render(
            [{"role": "user", "content": _ANSWER.lower()}, {"role": "assistant", "content": _ANSWER}],
            add_generation_prompt=False,
            bos_token=_token(tokenizer, tokenizer.bos_id),
            eos_token=_token(tokenizer, tokenizer.eos_id),
        )
    except ChatTemplateError:
        return None
    _, answer, behind = text.rpartition(_ANSWER)
    first = next((piece for piece in tokenizer.split_special(behind.lstrip()) if piece != ""), None)
    return first if answer and isinstance(first, int) else None


class _Marks:
    """Puts marks in the place of special tokens in messages, and the text back once the real ones have been found.

    Also the beginning of a special token at the end of a text is marked: the next text could begin with the rest.
    """

    def __init__(self, special_tokens: frozenset[str]) -> None:
        self._key = secrets.token_hex(8)  # so that no message can hold a mark of its own
        self._texts: list[str] = []
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._beginnings = {token[:n] for token in special_tokens for n in range(1, len(token))}
        self._longest = max(map(len, self._beginnings), default=0)

    def put_into(self, value: Mapping[str, object]) -> dict[str, object]:
        """A message or tool with marks in all of its texts but the role, which templates compare."""
        return {self._marked(key): item if key == "role" else self._put(item) for key, item in value.items()}

    def _put(self, value: object) -> object:
        if isinstance(value, str):
            return self._marked(value)
        if isinstance(value, Mapping):
            return {self._put(key): self._put(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._put(item) for item in value]
        return value

    def restored(self, text: str) -> str:
        """The text with what the marks stand for."""
        if not self._texts:
            return text
        return re.sub(rf"{self._key}x(\d+)x", lambda match: self._texts[int(match[1])], text)

    def _marked(self, text: str) -> str:
        if self._special is None:
            return text
        text = self._special.sub(lambda match: self._mark(match[0]), text)
        end = len(text.rstrip())  # templates trim
        for n in range(min(self._longest, end), 0, -1):
            if text[end - n : end] in self._beginnings:
                return text[: end - n] + self._mark(text[end - n : end]) + text[end:]
        return text

    def _mark(self, text: str) -> str:
        self._texts.append(text)
        return f"{self._key}x{len(self._texts) - 1}x"


_WAY_OUT = "Check the messages, or give the prompt as raw text"


def checked(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The messages as templates expect them. Raises ChatTemplateError."""
    if isinstance(messages, (str, Mapping)) or not messages:
        raise ChatTemplateError("there are no messages; give a list of at least one, for example from the user.")
    return [_checked(number, message) for number, message in enumerate(messages)]


def _checked(number: int, message: Message) -> dict[str, object]:
    """The message as it is, known to have a role, and content that is a text, parts of text, or absent beside calls."""
    if not isinstance(message, Mapping):
        raise ChatTemplateError(f"message {number} is not a mapping with role and content, but {message!r:.60}.")
    role = message.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise ChatTemplateError(f'message {number} has the role {role!r:.60}; a role is a word such as "user".')
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        for part in content:
            if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ChatTemplateError(
                    f"message {number} has a part that is not text: {part!r:.60}. Only text is supported."
                )
        return {**message, "content": [dict(part) for part in content]}
    if content is None and "tool_calls" not in message:
        raise ChatTemplateError(f"message {number} has no content.")
    if content is not None and not isinstance(content, str):
        raise ChatTemplateError(f"message {number} has the content {content!r:.60}, which is not a text.")
    return dict(message)


def _in_parts(message: Mapping[str, object]) -> bool:
    return isinstance(message.get("content"), list)


def _joined(message: dict[str, object]) -> dict[str, object]:
    """The message with content that is one text."""
    content = message.get("content")
    return {**message, "content": "\n".join(p["text"] for p in content)} if isinstance(content, list) else message


def _token(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.token(token_id)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself without end"
    return str(error).rstrip(".") or type(error).__name__
