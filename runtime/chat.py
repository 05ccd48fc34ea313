"""Conversations: messages that are remembered, over a cache that is reused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .chat_template import Message
from .result import Result
from .stream import Stream

if TYPE_CHECKING:
    from .model import Model


class Chat:
    """A conversation. A turn that fails or is stopped early leaves the messages as they were before it."""

    def __init__(self, model: Model, system: str | None) -> None:
        self.model = model
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def send(self, text: str, *, max_new_tokens: int | None = 512, temperature: float | None = None) -> Result:
        """The answer to one more user message."""
        stream = self.stream(text, max_new_tokens=max_new_tokens, temperature=temperature)
        for _ in stream:
            pass
        assert stream.result is not None
        return stream.result

    def stream(self, text: str, *, max_new_tokens: int | None = 512, temperature: float | None = None) -> Stream:
        """The same, piece by piece. The turn is remembered once the stream has been read to its end."""
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        inner = self.model.stream(asked, max_new_tokens=max_new_tokens, temperature=temperature)

        def pieces(outer: Stream) -> Iterator[str]:
            outer.rounds = inner.rounds
            try:
                yield from inner
            finally:
                inner.close()
            outer.result = inner.result
            if inner.result is not None:
                self.messages = [*asked, {"role": "assistant", "content": inner.result.text}]

        return Stream(pieces)
