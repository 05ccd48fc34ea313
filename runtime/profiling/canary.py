"""The canary: a short text with a known answer, which every device gives before it is trusted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from ..encoder_input import prepare
from ..errors import PilotfishError
from ..interfaces import Floats, Session, Tokens, as_tokens
from ..sampling.finite import are_finite, require_finite
from .teacher_forced import logits_along_text

TEXT = (
    "The capital of France is Paris, and the capital of Italy is Rome. One, two, three, four, five, six, seven, "
    "eight. def add(a, b):\n    return a + b\n"
)
_MOST_TOKENS = 48
_STEPS = (8, 4, 2)  # widths of the last steps: the cache is read back, not only written
WRONG = 0.2  # error from which on an answer is wrong: rounding to int8 gives 0.00-0.05, a broken kernel 0.5-1


class Canary(BaseModel):
    """A text and what the model says at every place of its second half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[int, ...]
    source: tuple[int, ...] = ()  # what an encoder-decoder model reads first; (): a decoder, or a stand-in for sound
    best: tuple[int, ...]  # the most probable token after each of the last len(best) tokens
    gaps: tuple[float, ...]  # logit of each best token minus the second best: how sure the answer is

    @model_validator(mode="after")
    def _fits(self) -> Canary:
        if not 0 < len(self.best) == len(self.gaps) <= len(self.tokens):
            raise ValueError("a canary needs one answer and one gap for each of its last tokens")
        return self


def make_canary(session: Session, text: Tokens, source: Tokens | None = None, *, rows: int = _MOST_TOKENS) -> Canary:
    """What an engine that is trusted answers to the text. The session must be empty and is left empty.

    source: what an encoder-decoder model reads first; None for sound: the same silence for everybody.
    rows: of a step, at most; an engine that answers for itself is asked token by token.
    Raises NotFiniteError where the weights have no answer.
    """
    _read(session, source)
    tokens = text[: min(_MOST_TOKENS, session.max_context)]
    n = min(sum(_STEPS), len(tokens))
    answers = []
    for at in range(0, len(tokens), rows):
        step = tokens[at : at + rows]
        asked = min(len(step), max(at + len(step) - (len(tokens) - n), 0))
        answers.append(session.forward(step, n_logits=asked).logits.copy())
    logits = np.concatenate(answers)
    require_finite(logits, session.info)
    session.truncate(0)
    return _canary(tokens, logits, source)


def canary_at_once(text: Tokens, run: Callable[[Tokens], Floats]) -> Canary | None:
    """What a graph that is run as it is answers to the text; None where its logits are no numbers.

    run: the logits of every token, (n, vocab_size), read in one step and without a cache of ours.
    """
    tokens = text[:_MOST_TOKENS]
    logits = run(tokens)[-min(sum(_STEPS), len(tokens)) :]
    return _canary(tokens, logits, None) if are_finite(logits) else None


def _canary(tokens: Tokens, logits: Floats, source: Tokens | None) -> Canary:
    """logits: of the last tokens."""
    best = logits.argmax(axis=-1)
    top = np.partition(logits, -2, axis=-1)[:, -2:]
    return Canary(
        tokens=tuple(tokens.tolist()),
        source=() if source is None else tuple(source.tolist()),
        best=tuple(best.tolist()),
        gaps=tuple((top[:, 1] - top[:, 0]).astype(float).tolist()),
    )


def canary_error(session: Session, canary: Canary) -> float:
    """How far a session is from the known answer: 0 where all its best tokens are right, about 1 where it guesses.

    The mean, over the answers, of how far the right token's logit lies below the best one, in units of best minus
    mean. A near-tie that rounding decides the other way counts next to nothing; what is not finite counts as 1. The
    session must be empty and is left empty.
    """
    tokens, best = as_tokens(canary.tokens), as_tokens(canary.best)
    if len(tokens) > session.max_context or max(canary.tokens + canary.best) >= session.info.vocab_size:
        return 1.0
    try:
        _read(session, as_tokens(canary.source) if canary.source else None)
    except PilotfishError:  # longer than this encoder reads, other tokens
        return 1.0
    logits = logits_along_text(session, tokens, len(best), widths=_STEPS)
    session.truncate(0)
    return _answer_error(logits, best)


def _answer_error(answer: Floats, best: Tokens) -> float:
    """The error of logits, one row for each of the best tokens: see canary_error()."""
    logits = answer.astype(np.float64)
    if not np.isfinite(logits).all():
        return 1.0
    top = logits.max(axis=-1)
    short = top - logits[np.arange(len(best)), best]
    spread = top - logits.mean(axis=-1)
    return float(np.mean(np.divide(short, spread, out=np.ones_like(short), where=spread > 0)))


def _read(session: Session, source: Tokens | None) -> None:
    if source is None:
        prepare(session)
    else:
        session.encode(source)
