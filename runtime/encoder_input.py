"""What an encoder reads: is it fit to be read, and something to read where only time is measured."""

from __future__ import annotations

import numpy as np

from .errors import ContextFullError, OptionError
from .interfaces import EncoderInfo, Floats, ModelInfo, Session, Tokens

_STAND_IN = 64  # tokens


def checked_source(source: Tokens | Floats, encoder: EncoderInfo, vocab_size: int) -> Tokens | Floats:
    """The source as the encoder takes it: (n,) int64, or (bins, frames) float32.

    Raises OptionError for another shape or kind, an empty source and unknown tokens; ContextFullError for a long one.
    """
    limit = encoder.source_limit
    if encoder.source_kind == "audio":
        if source.ndim != 2 or source.dtype.kind != "f" or source.shape != (encoder.bins, limit or source.shape[1]):
            raise OptionError(
                f"this model listens: it takes ({encoder.bins}, {limit or 'any'}) numbers, bins by frames, and was "
                f"given an array of shape {source.shape}. Make features of the sound first."
            )
        return source.astype(np.float32, copy=False)
    if source.ndim != 1 or source.dtype.kind not in "iu":
        raise OptionError(f"this model reads text: it takes token ids, not an array of shape {source.shape}.")
    if not len(source):
        raise OptionError("the source is empty, and an encoder needs at least one token; give it some text.")
    if limit is not None and len(source) > limit:
        raise ContextFullError(
            f"the source has {len(source)} tokens, but this model's encoder reads {limit} at most. "
            "Shorten it, or cut it into parts that are answered one by one."
        )
    if source.min() < 0 or source.max() >= vocab_size:
        raise OptionError(f"the source holds token ids outside of 0..{vocab_size - 1}.")
    return source.astype(np.int64, copy=False)


def stand_in(info: ModelInfo) -> Tokens | Floats | None:
    """A source of no meaning, to measure steps with; None for a decoder-only model."""
    encoder = info.encoder
    if encoder is None:
        return None
    if encoder.source_kind == "audio":
        return np.zeros((encoder.bins or 1, encoder.source_limit or _STAND_IN), dtype=np.float32)
    return np.arange(min(_STAND_IN, encoder.source_limit or _STAND_IN), dtype=np.int64) % info.vocab_size


def prepare(session: Session) -> None:
    """Let a session read a stand-in where it could take no step without a source."""
    source = stand_in(session.info)
    if source is not None:
        session.encode(source)
