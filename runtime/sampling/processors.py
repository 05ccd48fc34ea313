"""What settings for generating do to logits, one processor for each. They write into the logits they are given.

Each is the LogitsProcessor of transformers that its docstring names, for one context instead of a batch; a processor
sees the committed context with the drafted path behind it, and keeps no state.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..interfaces import Floats, Indices, Tokens
from .log_softmax import log_sum_exp
from .sampling import LogitsProcessor


def scaled(penalty: float, tokens: Tokens | None = None) -> LogitsProcessor:
    """Divides logits above 0 of these tokens, multiplies those below; None: of the context's tokens.

    RepetitionPenaltyLogitsProcessor; EncoderRepetitionPenaltyLogitsProcessor with the reciprocal.
    """

    def apply(logits: Floats, context: Tokens) -> Floats:
        at = context if tokens is None else tokens
        found = logits[at]
        logits[at] = np.where(found < 0, found * penalty, found / penalty)
        return logits

    return apply


def without_repeats(size: int) -> LogitsProcessor:
    """No run of `size` tokens twice. NoRepeatNGramLogitsProcessor."""

    def apply(logits: Floats, context: Tokens) -> Floats:
        n_runs = len(context) - size + 1
        if n_runs > 0:
            same = np.ones(n_runs, dtype=bool)
            for i in range(size - 1):
                same &= context[i : i + n_runs] == context[n_runs + i]
            logits[context[size - 1 :][same]] = -np.inf
        return logits

    return apply


def without_runs_of(source: Tokens, size: int) -> LogitsProcessor:
    """No run of `size` tokens that the source has. EncoderNoRepeatNGramLogitsProcessor."""
    after: dict[tuple[int, ...], list[int]] = {}
    listed = source.tolist()
    for start in range(len(listed) - size + 1):
        *before, last = listed[start : start + size]
        after.setdefault(tuple(before), []).append(last)

    def apply(logits: Floats, context: Tokens) -> Floats:
        if len(context) + 1 >= size:
            logits[after.get(tuple(context[len(context) + 1 - size :].tolist()), [])] = -np.inf
        return logits

    return apply


def biased(words: Iterable[tuple[tuple[int, ...], float]]) -> LogitsProcessor:
    """Adds to the logit of each word's last token where the context ends with the others.

    SequenceBiasLogitsProcessor, and with a bias of -inf NoBadWordsLogitsProcessor. As there, a word that is longer
    than the context waits for another token.
    """
    known = [(np.array(word[:-1], dtype=np.int64), word[-1], bias) for word, bias in words]

    def apply(logits: Floats, context: Tokens) -> Floats:
        for before, last, bias in known:
            n = len(before)
            if not n or (n < len(context) and np.array_equal(context[-n:], before)):
                logits[last] += bias
        return logits

    return apply


def without(tokens: Indices, *, below: int | None = None, at: int | None = None) -> LogitsProcessor:
    """These tokens have no chance: anywhere, in contexts shorter than `below`, or of the length `at`.

    SuppressTokensLogitsProcessor; MinLengthLogitsProcessor and MinNewTokensLengthLogitsProcessor, whose tokens are
    those that end an answer; SuppressTokensAtBeginLogitsProcessor.
    """

    def apply(logits: Floats, context: Tokens) -> Floats:
        if (below is None or len(context) < below) and (at is None or len(context) == at):
            logits[tokens] = -np.inf
        return logits

    return apply


def forced(tokens: Indices, at: int) -> LogitsProcessor:
    """Only these tokens have a chance in a context of this length. ForcedEOSTokenLogitsProcessor."""

    def apply(logits: Floats, context: Tokens) -> Floats:
        if len(context) == at:
            logits[:] = -np.inf
            logits[tokens] = 0.0
        return logits

    return apply


def ending_sooner(ends: Indices, start: int, factor: float) -> LogitsProcessor:
    """Logits of the tokens that end an answer grow from a length of the context on. ExponentialDecayLengthPenalty."""

    def apply(logits: Floats, context: Tokens) -> Floats:
        if len(context) > start:
            open_ends = ends[np.isfinite(logits[ends])]  # what has no chance gets none
            logits[open_ends] += np.abs(logits[open_ends]) * (factor ** (len(context) - start) - 1)
        return logits

    return apply


def with_times(first: int, end: int, begin: int, latest: int | None) -> LogitsProcessor:
    """Times come in pairs, never fall, and are said once they are likelier together than any word.
    WhisperTimeStampLogitsProcessor.

    first: the token that says 0.00, the one before which asks for no times; end: the token that ends an answer, which
    words come before; begin: the context's length before the answer; latest: how far from 0.00 it may begin.
    """

    def apply(logits: Floats, context: Tokens) -> Floats:
        logits[first - 1] = -np.inf
        said = context[begin:]
        times = said[said >= first]
        after_time = len(said) > 0 and said[-1] >= first
        if after_time and (len(said) < 2 or said[-2] >= first):
            logits[first:] = -np.inf
        elif after_time:
            logits[:end] = -np.inf
        if len(times):
            open_pair = after_time and len(said) > 1 and said[-2] < first
            logits[first : int(times[-1]) + (0 if open_pair else 1)] = -np.inf
        if not len(said):
            logits[:first] = -np.inf
            if latest is not None:
                logits[first + latest + 1 :] = -np.inf
        words, clock = logits[:first].max(), logits[first:]
        if np.isfinite(clock.max()) and log_sum_exp(clock) > words:
            logits[:first] = -np.inf
        return logits

    return apply
