"""Encoder-decoder models on llama.cpp: a context keeps what the encoder gave, and nothing can take it out of there.

So a context that is made anew, because a cache grows, is forked or comes from a file, reads the source again. The keys
and values of the source are not kept at all: every step of the decoder computes them (llama.cpp, src/models/t5.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psutil

from ...runtime.encoder_input import checked_source
from ...runtime.errors import ContextFullError, EngineError, OptionError
from ...runtime.interfaces import Floats, Indices, Observations, Step, Tokens, as_tokens
from ..common.saved_cache import Layout, pack, unpack
from ..common.source_session import UNREAD
from .context import Context
from .loaded_model import LlamaCppModel
from .session import FIRST, LlamaCppSession

_ENCODER_BYTES = 12  # for each head and pair of tokens: its score, what its distance adds, and the softmax, in f32
_SAVED: Sequence[Layout] = ((np.uint8, (None,)), (np.int64, (None,)))  # llama.cpp's state, and the source


class LlamaCppEncoderDecoderSession(LlamaCppSession):
    """One cache of a decoder, and the source that its answers are about."""

    def __init__(self, model: LlamaCppModel, max_context: int, watching: bool = False) -> None:
        self._source: Tokens | None = None
        super().__init__(model, max_context, watching)

    def encode(self, source: Tokens | Floats) -> None:
        self._rows.check_open()
        self._model.check_open()
        assert self.info.encoder is not None
        read = checked_source(source, self.info.encoder, self.info.vocab_size).astype(np.int64)
        context, nothing = self._open(), np.empty(0, dtype=np.int64)
        if len(read) > context.source_length:
            context = self._reading(read, min(FIRST, self.max_context), self._watching)
        else:
            self._source, self._paths = None, []  # a failure leaves none
            self._rows.replace(nothing)
            context.encode(read)
        self._context, self._source, self._paths = context, read, []
        self._rows.replace(nothing)

    def save(self) -> bytes:
        """With the source, which is read again."""
        self._rows.check_settled()
        source = np.empty(0, dtype=np.int64) if self._source is None else self._source
        return pack(self.info, self.positions, [np.frombuffer(self._state(), dtype=np.uint8), source])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        self._model.check_open()
        assert self.info.encoder is not None
        positions, (data, source) = unpack(self.info, state, self.max_context, lambda n: _SAVED)
        before = self._source
        if source.size:
            read = as_tokens(source.astype(np.int64))
            self._source = checked_source(read, self.info.encoder, self.info.vocab_size).astype(np.int64)
        try:
            self._fill(positions, bytearray(data.tobytes()))
        except EngineError as error:
            self._source = before
            raise OptionError(f"this saved cache is damaged; save it again ({error})") from error

    def _check_step(self, parents: Indices | None) -> None:
        self._rows.check_open()
        if self._source is None:
            raise OptionError(UNREAD)

    def _empty(self, max_context: int) -> LlamaCppEncoderDecoderSession:
        other = LlamaCppEncoderDecoderSession(self._model, max_context, self._watching)
        other._source = self._source  # read when the entries come
        return other

    def _make(self, n_entries: int, watching: bool) -> Context:
        if self._source is None:
            return self._model.context(n_entries, watching)
        return self._reading(self._source, n_entries, watching)

    def _reading(self, source: Tokens, n_entries: int, watching: bool) -> Context:
        needed, free = _ENCODER_BYTES * self.info.n_heads * len(source) ** 2, psutil.virtual_memory().available
        if needed > free:  # the system would promise the memory and then kill the process
            raise ContextFullError(
                f"the source has {len(source)} tokens: llama.cpp's encoder needs {needed >> 20} MiB to read it at "
                f"once, and {free >> 20} MiB are free. Shorten it, or cut it into parts that are answered one by one."
            )
        context = self._model.context(n_entries, watching, len(source))
        context.encode(source)
        return context

    def _give_back(self) -> None:
        """Nothing: a smaller context would have to read the source again."""

    def _read(self, context: Context, n: int, n_logits: int, observe: Observations, n_before: int) -> Step:
        """Copies: the next source may move the memory that logits lie in."""
        step = super()._read(context, n, n_logits, observe, n_before)
        return Step(step.logits.copy(), step.hidden, None, step.attention)
