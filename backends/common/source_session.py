"""Sessions of encoder-decoders whose source is read once and kept: reading it, and saving a cache together with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...runtime.encoder_input import checked_source
from ...runtime.errors import OptionError
from ...runtime.interfaces import EncoderInfo, Floats, Indices, ModelInfo, Tokens
from .kv_rows import Rows
from .saved_cache import Array, Layout, pack, unpack


class SourceSession(ABC):
    """What such sessions share: an engine says how it reads a source, and how it holds entries."""

    info: ModelInfo
    max_context: int
    _rows: Rows
    _source: Tokens | Floats | None
    _entries: Callable[[], list[Array]]  # of the decoder's own cache
    _fill: Callable[[Indices, Iterable[Array]], None]  # hold these and no others
    _layout: Callable[[int], list[Layout]]  # of so many

    def encode(self, source: Tokens | Floats) -> None:
        self._rows.check_open()
        encoder = self._encoder()
        read = checked_source(source, encoder.info, self.info.vocab_size)
        self._see(read.copy(), encoder.read(read))
        self._rows.replace(np.empty(0, dtype=np.int64))

    def save(self) -> bytes:
        """With the source, which is read again."""
        self._rows.check_settled()
        source = np.empty(0, dtype=np.int64) if self._source is None else self._source
        return pack(self.info, self._rows.positions, [*self._entries(), source])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        positions, (*entries, source) = unpack(self.info, state, self.max_context, self._saved_layout)
        if source.size:
            self.encode(source.astype(np.float32) if source.ndim > 1 else source.astype(np.int64))
        self._fill(positions, entries)

    def _saved_layout(self, n: int) -> Sequence[Layout]:
        return [*self._layout(n), source_layout(self.info.encoder)]

    def _require_source(self) -> None:
        if self._source is None:
            raise OptionError(UNREAD)

    @abstractmethod
    def _encoder(self) -> Any:
        """The encoder: `info`, and `read(source)`, which gives what `_see` takes."""

    @abstractmethod
    def _see(self, source: Tokens | Floats, crossed: Any) -> None:
        """Hold a source and its keys and values."""


UNREAD = "nothing was encoded yet: give the session a source first, with encode()."


def source_layout(encoder: EncoderInfo | None) -> Layout:
    """Of a saved source: token ids (n,), or a spectrogram (bins, n)."""
    if encoder is not None and encoder.source_kind == "audio":
        return (np.float32, (encoder.bins, None))
    return (np.int64, (None,))
