"""Questions about a text that is longer than the model's context: the model itself finds the parts that matter.

What is kept is text, not entries of a cache, so it runs on every engine, and the answer is one ordinary generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ..cache.sequence import CachedSequence
from ..checks import whole
from ..decoding.scoring import surprisal
from ..errors import ContextFullError, NotFiniteError, OptionError
from ..interfaces import Tokens
from ..profiling.row_classes import MAX_WIDTH
from ..progress import Counted
from ..sampling.log_softmax import log_softmax
from ..text.segments import Segment, cut
from .model import Model

Score: TypeAlias = Literal["likelihood", "entropy"]
_GAP = "\n[...]\n"  # between parts of the document that do not follow each other
_GAP_TOKENS = 8  # that this takes, at most
_ENOUGH = 4  # segments that a prompt holds where the context has room for them
_WAITED_FOR = 2048  # tokens of a prompt whose size nobody chose


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The parts of a document that an answer will rest on."""

    prompt: str  # these parts and the question, for generate()
    kept: tuple[Segment, ...]  # in the document's order
    segments: tuple[Segment, ...]  # all of them, with their scores
    n_read: int  # tokens that were run to score them; 0 where the whole document fits
    seconds: float


def excerpt(
    model: Model,
    document: str,
    question: str,
    *,
    budget: int | None = None,
    new_tokens: int | None = None,
    segment: int = 256,
    score: Score = "likelihood",
    raw: bool = False,
    progress: Counted | None = None,
) -> Excerpt:
    """What of a document, of any length, to put before a question: `model.generate(excerpt(...).prompt)` answers it.

    The document is cut into segments; the model reads each of them with the question behind it, in a small cache of
    its own, so that its time grows with the document's length and no faster. The best are kept in their order.

    budget: tokens of the prompt that comes of it. The default is that of default_budget(), except for a document that
        fits into three quarters of the context, which is kept whole and not read.
    new_tokens: that the answer may have; room is left for them, and for a quarter of the context at least.
    segment: tokens of a segment, at most.
    score: "likelihood", of the question after the segment (LongLLMLingua's coarse rule), or "entropy", of the
    distribution of
        the answer's first token, lower being better (XL3M, Wang et al. 2024).
    raw: the prompt is meant for generate(..., raw=True).
    progress: called with (tokens read, tokens in all); what it raises ends the reading.
    Raises OptionError and ContextFullError before anything is read.
    """
    began = time.perf_counter()
    most, room = _room(model, document, question, budget, new_tokens, segment, score, raw)
    count = _counter(model)
    whole = Segment(0, len(document), document, count(document))
    if whole.n_tokens <= most and _fits(model, [whole], question, raw, most):
        return Excerpt(_prompt([whole], question), (whole,), (whole,), 0, time.perf_counter() - began)
    parts = cut(document, segment, count)
    prompts = [model.encode(_prompt([replace(part, start=0)], question), raw=raw) for part in parts]
    asked = min(_common_end(prompt, model.encode(_prompt([], question), raw=raw)) for prompt in prompts)
    scores = _scores(model, prompts, asked, score, progress)
    parts = [replace(part, score=value) for part, value in zip(parts, scores, strict=True)]
    kept = _best(model, parts, question, raw, room)
    n_read = sum(map(len, prompts))
    return Excerpt(_prompt(kept, question), tuple(kept), tuple(parts), n_read, time.perf_counter() - began)


def default_budget(most: int, context_length: int, around: int, segment: int) -> int:
    """Tokens of the prompt that a document is made into: a quarter of the context, and at most 2,048, for every one of
    them is waited for before the answer begins; but room for four segments, and never more than fits.

    most: tokens that fit; around: those of the question and the chat template.
    """
    enough = around + _ENOUGH * (segment + _GAP_TOKENS)
    return min(most, max(enough, min(context_length // 4, _WAITED_FOR)))


def _room(
    model: Model,
    document: str,
    question: str,
    budget: int | None,
    new_tokens: int | None,
    segment: int,
    score: str,
    raw: bool,
) -> tuple[int, int]:
    """Tokens that the prompt may have where the whole document is in it, and where parts are."""
    if model.info.encoder is not None:
        raise OptionError(
            "an excerpt is made for a decoder, and this is an encoder-decoder model: give it the text as its source."
        )
    if score not in ("likelihood", "entropy"):
        raise OptionError(f"score is {score!r}, but must be 'likelihood' or 'entropy'.")
    whole("segment", segment, 1)
    if budget is not None:
        whole("budget", budget, 1)
    if not document.strip() or not question.strip():
        raise OptionError(f"the {'question' if document.strip() else 'document'} is empty; give a text.")
    limit = min(model.max_context, model.info.context_length)
    larger = "Open the model with a larger max_context. " if limit < model.info.context_length else ""
    around = len(model.encode(_prompt([], question), raw=raw))
    most = min(limit * 3 // 4, limit - (new_tokens or 0) - MAX_WIDTH)
    room = default_budget(most, limit, around, segment) if budget is None else budget
    least = around + segment + _GAP_TOKENS
    if segment < 16 or not least <= room < limit:
        raise ContextFullError(
            f"the question has {around} tokens and a segment up to {segment} (16 or more), so the prompt's budget of "
            f"{room} must lie in {around + max(segment, 16) + _GAP_TOKENS}..{limit - 1}, for a context of {limit}. "
            f"{larger}Ask for fewer new tokens, choose smaller segments, or shorten the question."
        )
    return (most if budget is None else budget), room


def _counter(model: Model) -> Callable[[str], int]:
    return lambda text: len(model.tokenizer.encode(text, bos=False))


def _prompt(parts: Sequence[Segment], question: str) -> str:
    text, end = "", 0
    for part in parts:
        text += (_GAP if part.start > end else "") + part.text
        end = part.end
    return f"{text.strip()}\n\n{question}"


def _fits(model: Model, parts: Sequence[Segment], question: str, raw: bool, room: int) -> bool:
    return len(model.encode(_prompt(parts, question), raw=raw)) <= room


def _best(model: Model, parts: list[Segment], question: str, raw: bool, room: int) -> list[Segment]:
    """The parts with the highest scores that fit together, in the document's order."""
    kept: list[Segment] = []
    for part in sorted(parts, key=lambda p: -(p.score or 0.0)):
        wider = sorted([*kept, part], key=lambda p: p.start)
        if sum(p.n_tokens for p in wider) <= room and _fits(model, wider, question, raw, room):
            kept = wider
    return kept


def _scores(model: Model, prompts: list[Tokens], asked: int, score: Score, progress: Counted | None) -> list[float]:
    """One for each prompt; the higher, the better. asked: tokens of the question and what follows it."""
    rows = model.calibration.rows.rule()
    size = min(max(map(len, prompts)) + rows.maximum, model.info.context_length)
    sequence = CachedSequence(model.target.session(size), rows)
    found, done, total = [], 0, sum(map(len, prompts))
    try:
        for prompt in prompts:
            losses, logits = surprisal(sequence, prompt, len(prompt) - asked - 1)
            distribution = log_softmax(logits, np.float32)
            found.append(
                -float(losses.mean()) if score == "likelihood" else float((np.exp(distribution) * distribution).sum())
            )
            done += len(prompt)
            if progress is not None:
                progress(done, total)
    except NotFiniteError as error:
        raise model.explain(error) from error
    finally:
        sequence.session.close()
    return found


def _common_end(one: Tokens, other: Tokens) -> int:
    """How many of their last tokens are the same, fewer than either has."""
    n = min(len(one), len(other)) - 1
    differ = np.flatnonzero(one[len(one) - n :] != other[len(other) - n :])
    return n - int(differ[-1]) - 1 if len(differ) else n
