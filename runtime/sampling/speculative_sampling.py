"""Lossless acceptance: one rule for chains and trees, one-hot and sampled drafts, greedy and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..interfaces import Distribution, Draft

DistributionAt: TypeAlias = Callable[[int, Sequence[int]], Distribution]
"""(row, tokens drafted on the path down to that row) -> p after them. Asked only along the accepted path."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The accepted path and the one token more that every round yields."""

    rows: tuple[int, ...]  # accepted rows of the forward pass, row 0 not included
    token: int  # the correction after a rejection, the bonus after full acceptance


def verify(draft: Draft, distribution_at: DistributionAt, rng: np.random.Generator) -> Verdict:
    """Accept a path of the draft and draw one token more, so that the output has the target's distribution exactly.

    One-hot draft (nothing was drawn): sample y ~ p, accept the child that says y.
    Sampled draft: accept a child x ~ q with probability min(1, p(x) / q(x)), else p becomes norm(max(p - q, 0)) and
    the next sibling is tried against the distribution it was drawn from. With p and q both one-hot this is greedy
    decoding.
    A one-hot draft uses one uniform number per emitted token, so a seeded output does not depend on the drafts.

    Source: Leviathan et al. 2023, algorithm 1; recursive rejection: Jeon et al. 2024 (RSD), Chen et al. 2024 (Sequoia).
    """
    if draft.parents is None and draft.distributions is None:
        return _verify_chain(draft.tokens.tolist(), distribution_at, rng)
    children = _children(draft)
    row, rows, path = 0, [], ()  # type: int, list[int], tuple[int, ...]
    while True:
        p = distribution_at(row, path)
        siblings = children.get(row, ())
        if draft.distributions is None or not siblings:
            token = p.pick(rng.random())
            child = next((c for c in siblings if draft.tokens[c - 1] == token), None)
        else:
            child, token = _reject_recursively(draft, siblings, p, rng)
        if child is None:
            return Verdict(tuple(rows), token)
        row = child
        rows.append(row)
        path += (int(draft.tokens[row - 1]),)


def _verify_chain(tokens: list[int], distribution_at: DistributionAt, rng: np.random.Generator) -> Verdict:
    """verify() for a one-hot chain: the usual case, in which a step may be as short as the bookkeeping for trees."""
    for accepted, drafted in enumerate(tokens):
        token = distribution_at(accepted, tokens[:accepted]).pick(rng.random())
        if token != drafted:
            return Verdict(tuple(range(1, accepted + 1)), token)
    return Verdict(tuple(range(1, len(tokens) + 1)), distribution_at(len(tokens), tokens).pick(rng.random()))


def verify_greedy(tokens: list[int], best_at: Callable[[int], int]) -> Verdict:
    """verify() for a one-hot chain where every distribution is one certain token: there is nothing to draw, and no
    distribution to make.

    best_at: row -> the certain token after it. Asked only along the accepted path.
    """
    for accepted, drafted in enumerate(tokens):
        token = best_at(accepted)
        if token != drafted:
            return Verdict(tuple(range(1, accepted + 1)), token)
    return Verdict(tuple(range(1, len(tokens) + 1)), best_at(len(tokens)))


def _children(draft: Draft) -> dict[int, tuple[int, ...]]:
    """Rows below each row, in draft order. Of equal one-hot siblings the first is enough: it is found first."""
    if draft.parents is None:
        return {i: (i + 1,) for i in range(len(draft))}
    children: dict[int, tuple[int, ...]] = {}
    for i, parent in enumerate(draft.parents):
        children[int(parent)] = (*children.get(int(parent), ()), i + 1)
    return children


def _reject_recursively(
    draft: Draft, siblings: tuple[int, ...], p: Distribution, rng: np.random.Generator
) -> tuple[int | None, int]:
    """(accepted row, its token), or (None, a token from what is left of p)."""
    assert draft.distributions is not None
    for row in siblings:
        token, q = int(draft.tokens[row - 1]), draft.distributions[row - 1]
        if rng.random() * q.prob(token) < p.prob(token):
            return row, token
        left = residual(p, q)
        if left is None:  # p <= q everywhere, so p == q and the rejection was a rounding error
            return row, token
        p = left
    return None, p.pick(rng.random())


def residual(p: Distribution, q: Distribution) -> Distribution | None:
    """norm(max(p - q, 0)), the distribution of the token after a rejection; None where nothing is left."""
    if p.ids is None:
        left = np.maximum(p.probs - q.dense(len(p.probs)), 0.0)
    elif q.ids is None:
        left = np.maximum(p.probs - q.probs[p.ids], 0.0)
    else:
        at = np.minimum(np.searchsorted(q.ids, p.ids), len(q.ids) - 1)
        left = np.maximum(p.probs - np.where(q.ids[at] == p.ids, q.probs[at], 0.0), 0.0)
    total = left.sum()
    return Distribution(left / total, p.ids) if total > 0 else None
