"""How well a text was foreseen: what a model expected at every place of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..cache.compression import LOGIT_ROWS
from ..cache.sequence import CachedSequence
from ..interfaces import Floats, Tokens
from ..progress import Counted
from ..sampling.finite import require_finite
from ..sampling.log_softmax import log_softmax


def logits_along(
    sequence: CachedSequence, tokens: Tokens, first: int, widest: int = LOGIT_ROWS
) -> Iterator[tuple[int, Floats]]:
    """(place, logits after the token there and those behind it), (n, vocab_size), from token `first` to the last.

    widest: rows of a step at most. The cache is compressed where decoding would compress it. The array belongs to the
    caller until the next one. Raises NotFiniteError.
    """
    sequence.cover(tokens[:first])
    rows = sequence.rows
    while (at := len(sequence.tokens)) < len(tokens):
        if sequence.until_compression == 0:
            sequence.compress()
        n = min(widest, len(tokens) - at, sequence.until_compression or widest)
        if n <= rows.maximum:
            n = min(n, rows.floor(sequence.free) or n)
        logits = sequence.logits_after(tokens[at : at + n])
        require_finite(logits, sequence.session.info)
        yield at, logits


def surprisal(
    sequence: CachedSequence, tokens: Tokens, first: int, progress: Counted | None = None
) -> tuple[Floats, Floats]:
    """-log p of the tokens behind `first`, (len(tokens) - first - 1,), in nats, and the logits after the last one.

    progress: called with (tokens read, tokens in all).
    """
    found: list[Floats] = []
    last: Floats = np.empty(0, dtype=np.float32)
    for at, logits in logits_along(sequence, tokens, first):
        after = tokens[at + 1 : at + 1 + len(logits)]
        found.append(-log_softmax(logits, np.float32)[np.arange(len(after)), after])
        last = logits[-1].copy()
        if progress is not None:
            progress(at + len(logits), len(tokens))
    return np.concatenate(found), last
