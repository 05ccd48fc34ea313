"""The decode loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..cache.compression import ENDLESS
from ..cache.sequence import CachedSequence, Cancelled
from ..checks import room_hint, whole
from ..errors import AbilityError, ContextFullError, OptionError
from ..interfaces import Distribution, Draft, FinishReason, Floats, Indices, Proposer, Round, Tokens
from ..progress import Counted
from ..sampling.finite import require_finite
from ..sampling.sampling import Sampling
from ..sampling.speculative_sampling import Verdict, verify, verify_greedy
from ..speculation.controller import NO_DRAFT, Drafting, Proposal
from ..speculation.repeats import Repeats


class UpTo(int):
    """A number of new tokens that need not fit: as many as there is room for, if fewer. A plain number has to fit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a generation ends."""

    max_new_tokens: int | UpTo | None = None  # None: until the context is full
    stop_ids: frozenset[int] = frozenset()
    cancelled: Callable[[], bool] = lambda: False  # asked between prefill chunks and between rounds
    progress: Counted | None = None  # prefill: (tokens done, tokens in all)


_GROWTH = 1 << 12  # tokens there is room for at first: an answer may be allowed more than there is memory
CANCELLED = Round((), 0, 0, 0, 0.0, 0.0, 0.0, None, "cancelled")


def generate(
    target: CachedSequence,
    prompt: Tokens,
    *,
    sampling: Sampling,
    drafting: Drafting,
    proposers: tuple[Proposer, ...],
    limits: Limits,
    rng: np.random.Generator,
    source: Tokens | Floats | None = None,
    narrow: bool = False,
) -> Iterator[Round]:
    """Rounds of committed tokens, until a stop id, a limit or a cancel; the last one has a finish_reason.

    source: what an encoder-decoder model answers about; the prompt is what its answers begin with then.
    narrow: steps where the text repeats nothing are one row wide and carry no draft, whoever drafts (see Repeats).

    Between rounds, and whenever the consumer stops early, the target's cache covers the context but its last token.
    Raises ContextFullError and OptionError before anything changes, and NotFiniteError for weights without an answer.
    """
    end = end_of(target, prompt, limits, source is not None)
    n = len(prompt)
    context, committed = _grown(prompt, min(end, n + _GROWTH))
    try:
        read(target, prompt, limits, source)
    except Cancelled:
        yield CANCELLED
        return
    drafting.begin(target.n_seen)
    target.begin_answer(sampling, len(prompt))
    first = True
    repeats = Repeats() if narrow else None
    while True:
        if limits.cancelled():
            yield CANCELLED
            return
        compress_s = _compress(target)
        began = time.perf_counter()
        proposal = NO_DRAFT
        wide = repeats is None or repeats.at_end(committed[:n])
        if wide and proposers and not drafting.rests:
            proposal = drafting.propose(proposers, committed[:n], _room(target, n, end), repeats)
        if n + len(proposal.draft) >= len(context):
            context, committed = _grown(context, min(end, 2 * len(context)))
        step, width, verify_s = _forward(target, context[n - 1], proposal.draft, wide)
        try:
            if first:  # later steps are judged by their largest logit, but processors come before that
                require_finite(step[:1], target.session.info)
                first = False
            verdict, distributions = _verify(proposal.draft, step, sampling, context, committed, n, len(prompt), rng)
            if proposal.draft.parents is not None:
                target.accept(np.array([0, *verdict.rows], dtype=np.int64), width)
        except BaseException:  # a processor that raises, Ctrl-C: the cache must not keep what was not judged
            target.truncate(n - 1)
            raise
        tokens, reason = _commit(proposal.draft, verdict, limits.stop_ids, end - n)
        context[n : n + len(tokens)] = tokens
        n += len(tokens)
        if target.compares:
            target.committed(distributions[: len(tokens)] if distributions else [Distribution.point(x) for x in tokens])
        target.truncate(n - 1)  # forgets rejected drafts, spare rows and what lies behind a stop id
        n_context, n_tokens = target.n_seen + 1, len(tokens)
        drafting.observe(
            proposal, verdict.rows, width, n_context=n_context, n_tokens=n_tokens, verify_s=verify_s, began=began
        )
        round_s = time.perf_counter() - began + compress_s
        yield _round(proposal, tokens, len(verdict.rows), width, verify_s, round_s, reason)
        if reason is not None:
            return


def read(target: CachedSequence, prompt: Tokens, limits: Limits, source: Tokens | Floats | None) -> None:
    """Process everything before the first step: the source, where there is one, and the prompt but its last token.

    Raises Cancelled.
    """
    if source is not None:
        target.encode(source)
        if limits.progress is not None:
            limits.progress(source.shape[-1], source.shape[-1])
    target.cover(prompt[:-1], cancelled=limits.cancelled, progress=limits.progress)


def end_of(target: CachedSequence, prompt: Tokens, limits: Limits, has_source: bool) -> int:
    """Length of the context at which generation ends; checks that it fits."""
    if not len(prompt):
        raise OptionError("the prompt is empty; give at least one token (a chat template or a start token does).")
    if limits.max_new_tokens is not None:
        whole("max_new_tokens", limits.max_new_tokens, 1)
    holds = target.longest
    if limits.max_new_tokens is None and holds == ENDLESS:
        raise OptionError("max_new_tokens is None, but a context with this cache policy is never full; give a number.")
    # The last token is never cached, but the step that makes it may need spare rows.
    longest = holds + 2 - target.rows.minimum
    asked = longest if limits.max_new_tokens is None else len(prompt) + limits.max_new_tokens
    if isinstance(limits.max_new_tokens, UpTo):
        asked = min(asked, max(longest, len(prompt) + 1))
    if len(prompt) >= longest or asked > longest:
        flexible = limits.max_new_tokens is None or isinstance(limits.max_new_tokens, UpTo)
        wanted = "" if flexible else f" and max_new_tokens is {limits.max_new_tokens}"
        need = max(asked, len(prompt) + 1) + target.rows.minimum - 2
        known = target.session.info.context_length
        way_out = room_hint(need, known)
        if has_source:  # there is no prompt to shorten
            way_out = "Ask for fewer new tokens" + (f", or open it with max_context={need}." if need <= known else ".")
        if target.mode.bounded:
            way_out = "That is as far as the model's positions go, whatever is evicted; shorten the prompt."
        what = "the answer begins with" if has_source else "the prompt has"
        raise ContextFullError(f"{what} {len(prompt)} tokens{wanted}, but this session holds {holds}. {way_out}")
    if prompt.min() < 0 or prompt.max() >= target.session.info.vocab_size:
        raise OptionError(f"the prompt holds token ids outside of 0..{target.session.info.vocab_size - 1}.")
    return asked


def _grown(tokens: Tokens, size: int) -> tuple[Tokens, Tokens]:
    """A copy with room for `size` tokens, and the same memory for proposers and processors, which only look at it."""
    room = np.empty(size, dtype=np.int64)
    room[: len(tokens)] = tokens
    looked_at = room.view()
    looked_at.flags.writeable = False
    return room, looked_at


def _compress(target: CachedSequence) -> float:
    """Seconds that it took to make room, if the cache is full."""
    if target.until_compression != 0:
        return 0.0
    began = time.perf_counter()
    target.compress()
    return time.perf_counter() - began


def _room(target: CachedSequence, n: int, end: int) -> int:
    """Drafts that could still be committed, and whose step still fits into the cache.

    A draft does not go beyond the point where the cache is compressed: what follows is computed with what is left.
    """
    widest = target.rows.floor(target.free)
    room = min(end - n - 1, 0 if widest is None else widest - 1)
    ahead = target.until_compression
    return room if ahead is None else min(room, ahead - 1)


def _forward(target: CachedSequence, last: int, draft: Draft, wide: bool) -> tuple[Floats, int, float]:
    """Logits of the last committed token and the drafted ones, the width run, and the seconds it took.

    The width of a wide step is padded to one the row class allows; spare rows repeat a token and are forgotten
    afterwards.
    """
    n_rows = len(draft) + 1
    width = target.rows.fit(n_rows) if wide else 1
    tokens = np.array([last] * width, dtype=np.int64)
    tokens[1:n_rows] = draft.tokens
    parents: Indices | None = None
    if draft.parents is not None:
        if "tree" not in target.session.abilities:
            raise AbilityError(
                f"the {target.session.info.engine} engine cannot verify trees; use a proposer that drafts chains."
            )
        if not target.rows.trees:
            raise OptionError(
                "a proposer drafted a tree, and trees are not bit for bit what chains are, as exact=True promises. "
                "Use a proposer that drafts chains, or load the model with exact=False."
            )
        parents = np.concatenate([[0], draft.parents, np.zeros(width - n_rows, dtype=np.int64)])
    began = time.perf_counter()
    step = target.forward(tokens, n_logits=width, parents=parents)
    return step.logits, width, time.perf_counter() - began


def _verify(
    draft: Draft,
    logits: Floats,
    sampling: Sampling,
    context: Tokens,
    committed: Tokens,
    n: int,
    n_prompt: int,
    rng: np.random.Generator,
) -> tuple[Verdict, list[Distribution] | None]:
    """The verdict, and the distributions that it asked for: one for each of its tokens, or None where all are certain.

    context: the first n tokens are committed; the accepted path is written behind them as it grows. committed: the
    same memory, for processors to look at.
    """
    if sampling.greedy and draft.parents is None and draft.distributions is None:
        context[n : n + len(draft)] = draft.tokens
        return verify_greedy(
            draft.tokens.tolist(), lambda row: sampling.best(logits[row], committed[: n + row], n_prompt)
        ), None
    asked: list[Distribution] = []

    def distribution_at(row: int, path: Sequence[int]) -> Distribution:
        end = n + len(path)
        if path:
            context[end - 1] = path[-1]
        distribution = sampling.distribution(logits[row], committed[:end], n_prompt)
        asked.append(distribution)
        return distribution

    return verify(draft, distribution_at, rng), asked


def _round(
    proposal: Proposal,
    tokens: tuple[int, ...],
    n_accepted: int,
    width: int,
    verify_s: float,
    round_s: float,
    reason: FinishReason | None,
) -> Round:
    return Round(
        tokens,
        drafted=len(proposal.draft),
        accepted=min(n_accepted, len(tokens)),
        width=width,
        draft_s=proposal.draft_s,
        verify_s=verify_s,
        other_s=round_s - proposal.draft_s - verify_s,
        proposer=proposal.proposer,
        finish_reason=reason,
    )


def _commit(
    draft: Draft, verdict: Verdict, stop_ids: frozenset[int], room: int
) -> tuple[tuple[int, ...], FinishReason | None]:
    """The tokens of this round, cut behind the first stop id or at the limit."""
    rows = verdict.rows
    accepted = draft.tokens[: len(rows)] if draft.parents is None else draft.tokens[np.array(rows, dtype=np.int64) - 1]
    tokens = (*accepted.tolist(), verdict.token)[:room]
    if not stop_ids.isdisjoint(tokens):
        end = 1 + next(i for i, token in enumerate(tokens) if token in stop_ids)
        return tokens[:end], "stop"
    return tokens, "length" if len(tokens) == room else None
