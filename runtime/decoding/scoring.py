"""How well a text was foreseen: what a model expected at every place of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..cache.compression import LOGIT_ROWS
from ..cache.sequence import CachedSequence
from ..interfaces import Floats, Tokens
from ..sampling.finite import require_finite


def logits_along(sequence: CachedSequence, tokens: Tokens, first: int) -> Iterator[tuple[int, Floats]]:
    """(place, logits after the token there and those behind it), (n, vocab_size), from token `first` to the last.

    The cache is compressed where decoding would compress it. The array belongs to the caller until the next one.
    Raises NotFiniteError.
    """
    sequence.cover(tokens[:first])
    rows = sequence.rows
    while (at := len(sequence.tokens)) < len(tokens):
        if sequence.until_compression == 0:
            sequence.compress()
        n = min(LOGIT_ROWS, len(tokens) - at, sequence.until_compression or LOGIT_ROWS)
        if n <= rows.maximum:
            n = min(n, rows.floor(sequence.free) or n)
        width = n if n > rows.maximum else rows.fit(n)
        padded = np.concatenate([tokens[at : at + n], np.full(width - n, tokens[at + n - 1])])
        logits = sequence.forward(padded, n_logits=width).logits[:n]
        require_finite(logits, sequence.session.info)
        sequence.truncate(at + n)
        yield at, logits


def log_distribution(logits: Floats) -> Floats:
    """log p of every token, (n, vocab_size)."""
    wide = logits - logits.max(axis=-1, keepdims=True)
    total: Floats = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return total


def surprisal(
    sequence: CachedSequence, tokens: Tokens, first: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Floats, Floats]:
    """-log p of the tokens behind `first`, (len(tokens) - first - 1,), in nats, and the logits after the last one.

    progress: called with (tokens read, tokens in all).
    """
    found: list[Floats] = []
    last: Floats = np.empty(0, dtype=np.float32)
    for at, logits in logits_along(sequence, tokens, first):
        after = tokens[at + 1 : at + 1 + len(logits)]
        found.append(-log_distribution(logits)[np.arange(len(after)), after])
        last = logits[-1].copy()
        if progress is not None:
            progress(at + len(logits), len(tokens))
    return np.concatenate(found), last
