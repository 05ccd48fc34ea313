"""From what a caller gives to what the model reads: a prompt to continue, or a source to answer about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..errors import ChatTemplateError, OptionError
from ..interfaces import EncoderInfo, Floats, Tokens, as_tokens
from .audio_features import checked_features, log_mel
from .chat_template import ChatTemplate, Message, encode_chat
from .thinking import Marks, marks_of, switched
from .tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[Message] | Floats


@dataclass(frozen=True, slots=True)
class Task:
    """What one answer goes on from, and the source it is about: None where the prompt itself is continued.

    continues: whether the answer is more of the context's text; it is a text of its own in a chat, or about a source.
    thoughts: the marks of those that the answer may begin with, which are told apart from it; None: there are none.
    detect: languages of which the one that is heard takes the second place of the context. first_time: the token that
    says 0.00, where times are asked for.
    """

    context: Tokens
    source: Tokens | Floats | None = None
    continues: bool = False
    thoughts: Marks | None = None
    detect: tuple[int, ...] = ()
    first_time: int | None = None

    @property
    def n_read(self) -> int:
        """Tokens, or frames of sound, of the prompt."""
        return int(self.context.shape[-1] if self.source is None else self.source.shape[-1])

    @property
    def n_forced(self) -> int:
        """Tokens of the context that count as the answer's first ones, though nothing chose them: a language."""
        return 0 if self.words is None else len(self.context) - 1

    @property
    def hears(self) -> bool:
        """Whether the source is a recording."""
        return self.source is not None and self.source.ndim == 2

    @property
    def words(self) -> Tokens | None:
        """The source, where it is made of tokens."""
        return None if self.source is None or self.source.ndim != 1 else as_tokens(self.source.astype(np.int64))


def task_of(
    prompt: Prompt,
    raw: bool,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    encoder: EncoderInfo | None,
    *,
    special: bool = False,
    thinking: bool | None = None,
) -> Task:
    """What a prompt asks of a model. thinking: as in Model.generate(). Raises OptionError and ChatTemplateError."""
    listens = encoder is not None and encoder.source_kind == "audio"
    if isinstance(prompt, np.ndarray) != listens:
        takes = "sound, an array as of read_wav()" if listens else "a text or a list of messages"
        raise OptionError(f"this model takes {takes}, and was given {type(prompt).__name__}.")
    if not isinstance(prompt, (np.ndarray, Sequence)):
        raise OptionError(f"a prompt is a text or a list of messages, and was given {type(prompt).__name__}.")
    if isinstance(prompt, np.ndarray):
        assert encoder is not None
        if raw:
            raise OptionError("raw=True is about texts; sound has no template. Drop it.")
        if special:
            raise OptionError("special=True is about texts; sound holds no tokens. Drop it.")
        heard = log_mel(prompt, encoder) if prompt.ndim == 1 else checked_features(prompt, encoder)
        return Task(as_tokens(encoder.decoder_start), heard)
    source = encoder is not None
    tokens = encode_prompt(prompt, raw, tokenizer, template, source=source, special=special, thinking=thinking)
    if encoder is not None:
        return Task(as_tokens(encoder.decoder_start), tokens)
    continues = isinstance(prompt, str) and (raw or template is None)
    return Task(tokens, continues=continues, thoughts=None if continues else marks_of(template))


def encode_prompt(
    prompt: str | Sequence[Message],
    raw: bool,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    source: bool = False,
    special: bool = False,
    thinking: bool | None = None,
) -> Tokens:
    """Token ids of a text or of messages, chat template applied; source: as an encoder wants to read a text.

    special: whether the text of a special token in a raw prompt means the token. Raises OptionError for other prompts:
    nobody who writes a message may write what ends it. thinking: as in Model.generate().
    """
    if thinking is not None and raw:
        raise OptionError("thinking is told to a chat template, and raw=True (--raw) takes none; drop one of the two.")
    variables = switched(template, thinking)
    if special and not raw:
        raise OptionError(
            "special=True (--special) lets a prompt hold special tokens, and no message may: it goes with raw=True "
            "(--raw). Add that, or drop it."
        )
    if isinstance(prompt, str):
        if raw or template is None:
            if source and not prompt:
                raise OptionError("the source is empty: an encoder-decoder model needs a text to answer about.")
            return tokenizer.encode_source(prompt, special) if source else tokenizer.encode(prompt, special)
        prompt = [{"role": "user", "content": prompt}]
    elif raw:
        raise OptionError("raw=True takes a text, but a list of messages was given; drop one of the two.")
    if template is None:
        kind = "reads one text and has no chat template" if source else "has no chat template"
        raise ChatTemplateError(f"this model {kind}, so it cannot take messages; give it a text.")
    return encode_chat(tokenizer, template, prompt, variables=variables)
