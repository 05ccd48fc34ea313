"""What a session says along a text that is given: teacher forcing."""

from __future__ import annotations

import numpy as np

from ..interfaces import Floats, Session, Tokens


def logits_along_text(
    session: Session, tokens: Tokens, n_logits: int, *, widths: tuple[int, ...], chunk: int | None = None
) -> Floats:
    """Logits after each of the last n_logits tokens, (n_logits, vocab_size), read behind what the session holds.

    Each step takes the first of the widths that is left, or else all that is left. chunk: rows of a step whose logits
    nobody wants; None: all at once.
    """
    at, first = 0, len(tokens) - n_logits
    while at < first:
        end = first if chunk is None else min(at + chunk, first)
        session.forward(tokens[at:end], n_logits=0)
        at = end
    rows = []
    while at < len(tokens):
        left = len(tokens) - at
        width = next((w for w in widths if w <= left), left)
        rows.append(session.forward(tokens[at : at + width], n_logits=width).logits.copy())
        at += width
    return np.concatenate(rows)
