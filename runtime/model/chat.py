"""Conversations: messages that are remembered, over a cache that is reused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..cache.policies.policy import CachePolicy
from ..cache.saved import SavedSequence
from ..checks import check_seed
from ..decoding.loop import UpTo
from ..errors import OptionError
from ..interfaces import ModelInfo, Tokens
from ..progress import Counted
from ..text.chat_template import Message
from ..text.text_assembler import Stop
from .result import Result
from .saved_chat import Conversation, read_conversation, write_conversation
from .stream import Stream

TURN = UpTo(512)  # tokens of a turn whose length nobody asked for


class ChatModel(Protocol):
    """What a conversation needs of a model: its answers, and its cache to save. Model is one."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def cache(self) -> CachePolicy | None: ...

    @property
    def quality(self) -> float | None: ...

    @property
    def exact(self) -> bool: ...

    def stream(
        self,
        prompt: Sequence[Message],
        *,
        max_new_tokens: int | None,
        temperature: float | None,
        seed: int | None,
        stop: Stop,
        progress: Counted | None,
        thinking: bool | None,
    ) -> Stream: ...

    def encode(self, prompt: Sequence[Message]) -> Tokens: ...

    def save_cache(self, context: Tokens) -> SavedSequence: ...

    def restore_cache(self, saved: SavedSequence) -> None: ...


class Chat:
    """A conversation. A turn that fails or is stopped early leaves the messages as they were before it.

    seed: makes sampled answers repeatable, each by a seed of its own.
    """

    def __init__(self, model: ChatModel, system: str | None, seed: int | None = None) -> None:
        check_seed(seed)
        self.model = model
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.seed = seed

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write messages, seed and cache to one file, for Model.resume(); whole, or what was there before stays.

        Cached tokens of anything but this conversation are forgotten first. Raises OptionError where the file cannot
        be written, and AbilityError where the engine cannot save a cache.
        """
        answered = any(message["role"] == "assistant" for message in self.messages)
        tokens = self.model.encode(self.messages) if answered else np.empty(0, dtype=np.int64)
        sequence = self.model.save_cache(tokens)
        write_conversation(Path(path), Conversation(self.messages, self.seed, _maker(self.model), sequence))

    @classmethod
    def open(cls, model: ChatModel, path: str | os.PathLike[str], *, reread: bool = False) -> Chat:
        """What save() wrote; see Model.resume()."""
        found = read_conversation(Path(path))
        if not reread:
            maker = _maker(model)
            differs = [
                f"{k} {found.made_by.get(k)!r}, here {v!r}" for k, v in maker.items() if found.made_by.get(k) != v
            ]
            if differs:
                raise OptionError(
                    f"{path} was saved with something else than is loaded here: {'; '.join(differs)}. Load that, or "
                    "take the messages alone and have their text read anew: resume(path, reread=True), or --reread."
                )
            model.restore_cache(found.sequence)
        chat = cls(model, None, found.seed)
        chat.messages = found.messages
        return chat

    def send(
        self,
        text: str,
        *,
        max_new_tokens: int | None = TURN,
        temperature: float | None = None,
        stop: Stop = None,
        thinking: bool | None = None,
    ) -> Result:
        """The answer to one more user message. stop, thinking: as in Model.generate(); thoughts are not remembered."""
        stream = self.stream(text, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop, thinking=thinking)
        for _ in stream:
            pass
        assert stream.result is not None
        return stream.result

    def stream(
        self,
        text: str,
        *,
        max_new_tokens: int | None = TURN,
        temperature: float | None = None,
        stop: Stop = None,
        progress: Counted | None = None,
        thinking: bool | None = None,
    ) -> Stream:
        """The same, piece by piece. The turn is remembered once the stream has been read to its end.

        progress: called with (tokens done, tokens in all) while the conversation so far is processed.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        turn = sum(message["role"] == "assistant" for message in asked)
        seed = None if self.seed is None else self.seed + turn
        stream = self.model.stream(
            asked,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop,
            progress=progress,
            thinking=thinking,
        )

        def remember(answer: Result) -> None:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]

        stream.when_read = remember
        return stream


def _maker(model: ChatModel) -> dict[str, str]:
    """Everything that a cache depends on."""
    info = model.info
    return {
        "model": info.digest,
        "engine": info.engine,
        "version": info.engine_version,
        "device": info.device,
        "settings": info.settings,
        "cache policy": repr(model.cache) + (f" at quality {model.quality}" if model.cache and model.quality else ""),
        "exact": str(model.exact),
    }
