"""Beam search: the most probable answer that keeping a few beginnings of one at a time can find.

The rules are those of transformers (GenerationMixin._beam_search): of all ways to go on by one token the best are
looked at; those of the first `size` that end are answers, the best `size` that do not end are gone on with. An answer
is worth the logarithm of its probability divided by length ** length_penalty; the token that answers start from or a
prompt is not counted, a language that is forced to follow it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..cache.sequence import CachedSequence, Cancelled
from ..checks import real, whole
from ..errors import AbilityError, NoMemoryError, OptionError
from ..interfaces import FinishReason, Floats, ModelInfo, Probs, Round, Tokens
from ..memory import free_memory
from ..sampling.finite import require_finite
from ..sampling.log_softmax import log_softmax
from ..sampling.sampling import LogitsProcessor, Sampling
from .loop import CANCELLED, Limits, end_of, read


@dataclass(frozen=True, slots=True)
class Beams:
    """How to search.

    length_penalty: above 0 favours long answers, below 0 short ones, 0 the most probable one.
    early_stopping: True ends with the first `size` answers; False where the best beginning, at its present length, is
        worth less than the worst of them; "never" where no length it may still reach would help.
    """

    size: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        whole("beams", self.size, 1)
        real("length_penalty", self.length_penalty, "from -32 to 32", lambda x: abs(x) <= 32)
        if self.early_stopping not in (True, False, "never"):
            raise OptionError(f"early_stopping is {self.early_stopping!r}, but must be True, False or 'never'.")

    def worth(self, log_prob: float, length: int) -> float:
        """What an answer of so many tokens is worth."""
        return log_prob / math.pow(length, self.length_penalty)

    def may_improve(self, best: float, worst_answer: float, length: int, longest: int) -> bool:
        """Whether the best beginning may become worth more than the worst answer."""
        reached = longest if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self.worth(best, reached) > worst_answer


@dataclass(frozen=True, slots=True)
class _Beginning:
    tokens: tuple[int, ...]
    log_prob: float
    sequence: CachedSequence  # covers the context and all of the tokens but the last


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer."""

    tokens: tuple[int, ...]
    worth: float
    finish_reason: FinishReason


def check_beams(sampling: Sampling, stop: tuple[str, ...], *, draft: bool, cache: bool) -> None:
    """Raise OptionError for what beam search cannot be combined with."""
    for what, given, way_out in (
        ("sampling or penalties", sampling != Sampling(), "leave them out, or leave beams out"),
        ("stop strings", bool(stop), "give token ids, or cut the text afterwards"),
        ("a draft model", draft, "load the model with draft=None"),
        ("a cache policy", cache, "load the model with cache=None"),
    ):
        if given:
            raise OptionError(f"beam search goes through whole answers and cannot be had with {what}; {way_out}.")


def search(
    target: CachedSequence,
    context: Tokens,
    *,
    beams: Beams,
    limits: Limits,
    source: Tokens | Floats | None = None,
    processors: tuple[LogitsProcessor, ...] = (),
    n_forced: int = 0,
) -> Iterator[Round]:
    """Rounds as of engine.generate(), all of them at the end: nothing is decided before.

    processors: are given log probabilities, as in transformers. n_forced: the last tokens of the context that count
        as an answer's first ones where its worth is divided by its length.
    Raises AbilityError, ContextFullError and OptionError before anything changes.
    """
    if "fork" not in target.session.abilities:
        raise AbilityError(
            f"beam search forks sessions, and the {target.session.info.engine} engine cannot here; use another engine.",
            engine=target.session.info.engine,
            missing=frozenset({"fork"}),
        )
    end = end_of(target, context, limits, source is not None)
    _require_room(target.session.info, beams, end)
    try:
        read(target, context, limits, source)
    except Cancelled:
        yield CANCELLED
        return
    longest = end - len(context)
    try:
        rounds = beam_search(target, context, beams, longest, limits.stop_ids, limits.cancelled, processors, n_forced)[
            1
        ]
    except (MemoryError, NoMemoryError) as error:
        why = str(error).partition(". ")[0] or "there is none left"
        raise NoMemoryError(
            f"{beams.size} beams of up to {end} tokens do not fit into the memory that this process may take: {why}. "
            "Ask for fewer beams or fewer new tokens, or close other programs; a limit of a shell shows as `ulimit -v`."
        ) from error
    yield from rounds


def _require_room(info: ModelInfo, beams: Beams, n_tokens: int) -> None:
    """Raise OptionError for more beginnings than there are tokens to begin with, or than fit into the free memory."""
    whole("beams", beams.size, 1, info.vocab_size, hint="the model has no more tokens")
    entry = 2 * 4 * info.n_layers * info.kv_heads * info.head_dim
    each = n_tokens * entry + 3 * 8 * info.vocab_size  # a cache, and the ranked ways to go on
    free = free_memory()
    if beams.size * each > free:
        fitting = f"ask for {free // each} beams, or for" if free >= 2 * each else "leave beams out, or ask for"
        raise OptionError(
            f"{beams.size} beams of up to {n_tokens} tokens take {beams.size * each / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB of memory are free for this process; {fitting} fewer new tokens."
        )


def beam_search(
    target: CachedSequence,
    context: Tokens,
    beams: Beams,
    longest: int,
    stop_ids: frozenset[int],
    cancelled: Callable[[], bool] = lambda: False,
    processors: tuple[LogitsProcessor, ...] = (),
    n_forced: int = 0,
) -> tuple[list[Answer], list[Round]]:
    """The best answers, best first, and one round for every step, with the tokens of the best.

    target: covers the context but its last token, and does so afterwards. longest: tokens an answer may have.
    """
    answers, seconds = list[Answer](), list[tuple[int, float, float]]()
    running = [_Beginning((), 0.0, _fork(target))]
    try:
        while running:
            began = time.perf_counter()
            if cancelled():
                best = max(running, key=lambda b: b.log_prob)
                answers.append(Answer(best.tokens, -np.inf, "cancelled"))
                break
            logs, width, verify_s = _step(running, context, processors)
            length = len(running[0].tokens) + 1
            ranked = _best(logs, (1 + max(1, len(stop_ids))) * beams.size)
            ended, open_ends = [], []
            for rank, (beam, token, log_prob) in enumerate(ranked):
                stops = token in stop_ids
                if not stops and length < longest:
                    open_ends.append((beam, token, log_prob))
                elif rank < beams.size:
                    reason: FinishReason = "stop" if stops else "length"
                    ended.append(
                        Answer((*running[beam].tokens, token), beams.worth(log_prob, n_forced + length), reason)
                    )
            answers = sorted([*answers, *ended], key=lambda a: -a.worth)[: beams.size]
            running = _go_on(running, open_ends[: beams.size])
            seconds.append((width, verify_s, time.perf_counter() - began - verify_s))
            full = len(answers) == beams.size
            if full and (
                beams.early_stopping is True
                or not running
                or not beams.may_improve(running[0].log_prob, answers[-1].worth, n_forced + length, n_forced + longest)
            ):
                break
    finally:
        for beginning in running:
            beginning.sequence.session.close()
    return answers, _rounds(answers[0], seconds)


def _fork(sequence: CachedSequence) -> CachedSequence:
    return CachedSequence(sequence.session.fork(), sequence.rows, covered=sequence.tokens.copy())


def _step(
    running: list[_Beginning], context: Tokens, processors: tuple[LogitsProcessor, ...]
) -> tuple[Probs, int, float]:
    """Log probabilities of every beginning with every token behind it, (len(running), vocab_size); rows and seconds."""
    rows, spent, width = [], 0.0, running[0].sequence.rows.minimum
    for beginning in running:
        token = beginning.tokens[-1] if beginning.tokens else int(context[-1])
        sequence = beginning.sequence
        began = time.perf_counter()
        logits = sequence.logits_after(np.array([token], dtype=np.int64))[0]
        spent += time.perf_counter() - began
        if not math.isfinite(logits.max()):
            require_finite(logits, sequence.session.info)
        logs = log_softmax(logits)
        if processors:
            whole = np.concatenate([context, np.array(beginning.tokens, dtype=np.int64)])
            for processor in processors:
                logs = processor(logs, whole)
        rows.append(beginning.log_prob + logs)
    return np.array(rows), width * len(running), spent


def _best(logs: Probs, n: int) -> list[tuple[int, int, float]]:
    """The n best (beginning, token, log probability), best first."""
    flat = logs.ravel()
    n = min(n, len(flat))
    found = np.argpartition(-flat, n - 1)[:n]
    found = found[np.argsort(-flat[found], kind="stable")]
    return [(int(i) // logs.shape[1], int(i) % logs.shape[1], float(flat[i])) for i in found]


def _go_on(running: list[_Beginning], chosen: list[tuple[int, int, float]]) -> list[_Beginning]:
    """The chosen beginnings. The last child of one takes its session over, the others fork it, and what has no child is
    closed."""
    left = [sum(beam == i for beam, _, _ in chosen) for i in range(len(running))]
    for i, beginning in enumerate(running):
        if not left[i]:
            beginning.sequence.session.close()
    made = list[_Beginning]()
    try:
        for beam, token, log_prob in chosen:
            parent = running[beam]
            left[beam] -= 1
            sequence = parent.sequence if left[beam] == 0 else _fork(parent.sequence)
            made.append(_Beginning((*parent.tokens, token), log_prob, sequence))
    except BaseException:
        for one in made:  # the parents are closed by who has them
            one.sequence.session.close()
        raise
    return made


def _rounds(best: Answer, seconds: list[tuple[int, float, float]]) -> list[Round]:
    if not seconds:
        return [CANCELLED]
    rounds = []
    for i, (width, verify_s, other_s) in enumerate(seconds):
        reason = best.finish_reason if i == len(seconds) - 1 else None
        rounds.append(Round(best.tokens[i : i + 1], 0, 0, width, 0.0, verify_s, other_s, None, reason))
    return rounds
