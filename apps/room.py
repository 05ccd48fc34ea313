"""What a model cannot do at all, and what does not fit into it: asked before it is opened and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.checks import room_hint, shown
from ..runtime.errors import ContextFullError
from .terminal import LoadProgress

if TYPE_CHECKING:
    from ..runtime.model.rules import AnswerOptions
    from ..runtime.text.chat_template import Message

_TEMPLATE = 1024  # tokens that a chat template may add, for the guess whether a prompt need be looked at


def require_known(model: str, options: AnswerOptions) -> None:
    """Raise OptionError for a language, a task or times that the model, fetched where need be, cannot be asked for."""
    from ..loading.opening import resolve
    from ..runtime.model.rules import AnswerOptions, Rules

    if options == AnswerOptions():
        return
    with LoadProgress() as progress:
        file = resolve(model, progress)
    Rules(generation=file.generation).require_known(options, file.hears)


def require_room(
    model: str,
    text: str | None,
    system: str | None,
    max_new_tokens: int | None,
    max_context: int | None,
    *,
    raw: bool = False,
    special: bool = False,
) -> None:
    """Raise ContextFullError for a number of new tokens, or a prompt, that no session of the model could hold.

    text: the prompt; None is not known yet. A model that has to be fetched first is not asked. What a few tokens
    decide is left to the session, which knows how many rows its steps have.
    """
    from ..fetching import hub
    from ..fetching.by_name import cached
    from ..fetching.catalogue import NAMES
    from ..loading.opening import resolve
    from ..loading.vocabulary import read_tokenizer
    from ..runtime.decoding.loop import UpTo
    from ..runtime.text.chat_template import ChatTemplate
    from ..runtime.text.prompts import encode_prompt

    if (model in NAMES and cached(model) is None) or model.startswith(hub.PREFIX):
        return
    file = resolve(model)
    known = file.context_length
    room = known if max_context is None else min(max_context, known)
    wanted = 0 if max_new_tokens is None or isinstance(max_new_tokens, UpTo) else max_new_tokens
    if wanted > room:
        raise ContextFullError(
            f"max_new_tokens is {shown(wanted)}, but this session holds {room} tokens. Ask for fewer, or with "
            "--max-new-tokens 0 for as many as there is room for."
        )
    if text is None or file.is_encoder_decoder or _bytes(text + (system or "")) + _TEMPLATE + wanted <= room:
        return
    prompt: str | list[Message] = text
    if system is not None:
        prompt = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    chat = None if file.chat_template is None else ChatTemplate(file.chat_template)
    n = len(encode_prompt(prompt, raw, read_tokenizer(file), chat, special=special))
    if n + max(wanted, 1) > room + 1:
        more = f" and max_new_tokens is {wanted}" if wanted else ""
        hint = room_hint(n + max(wanted, 1), known)
        raise ContextFullError(f"the prompt has {n} tokens{more}, but this session holds {room}. {hint}")


def _bytes(text: str) -> int:
    """At least the number of tokens of a text."""
    return len(text.encode("utf-8", "surrogatepass"))
