"""Suffix lookup: what followed the last time the text ended like this.

A superset of prompt lookup (Saxena 2023) after SuffixDecoding (Oliaro et al. 2024): every match length is a candidate,
continuations are voted on by all earlier occurrences, and the draft with the largest expected acceptance wins. The
search is a few vectorised comparisons over the context, so there is no index to build, to roll back or to persist.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import OptionError
from ...interfaces import EMPTY_DRAFT, Budget, Draft, Indices, Tokens

_MAX_MATCH = 64
_MAX_LEVELS = 3  # distinct sets of occurrences looked at, longest match first
_MAX_OCCURRENCES = 256  # most recent ones that vote
_VOTED = 4  # tokens that occurrences vote on; behind them the most recent one that is left is followed
_FLOOR = 0.02  # a path less likely than this is not followed


@dataclass(frozen=True, slots=True)
class Suffix:
    """Drafts by suffix lookup over prompt and output. Deterministic, so drafts are one-hot.

    branches: more than 1 drafts a tree, best path first (needs a session with the ability "tree").
    source: what stands before the context: an encoder-decoder model's output may repeat what it reads.
    """

    branches: int = 1
    name: str = "suffix"
    source: Tokens | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.branches < 1:
            raise OptionError(f"branches is {self.branches}, but must be 1 (a chain) or more.")

    def reading(self, source: Tokens, start: int) -> Suffix:
        return replace(self, source=source)

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """The best continuation found, with the chance of every path; empty where the last token is new."""
        k = budget.max_tokens
        if k < 1 or len(context) < (2 if self.source is None else 1):
            return EMPTY_DRAFT
        if self.source is not None:
            context = np.concatenate([self.source, context])
        levels = _occurrences(context)[::-1]
        if self.branches > 1:
            return _tree(context, levels, k, self.branches) if levels else EMPTY_DRAFT
        drafts = [_chain(context, ends, match, k) for match, ends in levels]
        return max(drafts, key=_score, default=EMPTY_DRAFT)  # on a tie the first, which is the longest match


def _score(draft: Draft) -> float:
    return 0.0 if draft.expected is None else float(draft.expected.sum())


def _occurrences(context: Tokens) -> list[tuple[int, Indices]]:
    """Up to _MAX_LEVELS pairs of match length and end positions of the earlier occurrences of that suffix.

    Of the lengths that share one set of occurrences only the longest is listed. Ascending match length.
    """
    last = len(context) - 1
    ends = np.flatnonzero(context[:last] == context[last])[-_MAX_OCCURRENCES:]
    levels: list[tuple[int, Indices]] = []
    match = 1
    while len(ends) and match < _MAX_MATCH:
        if len(ends) == 1:
            levels.append((match + _extend(context, int(ends[0]), match), ends))
            return levels[-_MAX_LEVELS:]
        inside = ends[ends >= match]
        longer = inside[context[inside - match] == context[last - match]]
        if len(longer) < len(ends):
            levels.append((match, ends))
        ends, match = longer, match + 1
    if len(ends):
        levels.append((match, ends))
    return levels[-_MAX_LEVELS:]


def _extend(context: Tokens, end: int, match: int) -> int:
    """How much further back than `match` tokens the text before `end` equals the text before the context's end."""
    last = len(context) - 1
    n = min(_MAX_MATCH, end + 1) - match
    if n <= 0:
        return 0
    same = context[end - match - n + 1 : end - match + 1] == context[last - match - n + 1 : last - match + 1]
    differ = np.flatnonzero(~same[::-1])
    return int(differ[0]) if len(differ) else n


def _confidence(votes: int, occurrences: int, match: int) -> float:
    """Stated chance: the share of votes, shrunk by how little was seen and how short the matching suffix is."""
    return votes / (occurrences + 1.0 / match)


def _chain(context: Tokens, ends: Indices, match: int, k: int) -> Draft:
    """The most voted continuation. Occurrences that reach the end of the text go on into the draft itself (periods)."""
    n = len(context)
    text = np.empty(n + k, dtype=np.int64)
    text[:n] = context
    expected = np.empty(k)
    at, path, drafted = ends + 1, 1.0, 0
    while drafted < k:
        if len(at) == 1 or drafted == _VOTED:
            _copy(text, int(at[-1]), n + drafted)
            match += drafted
            expected[drafted:] = path * np.cumprod(1.0 / (1.0 + 1.0 / (match + np.arange(k - drafted))))
            drafted = k
            break
        token, voters = _most_voted(text[at], at)
        path *= _confidence(len(voters), len(at), match + drafted)
        if path < _FLOOR:
            break
        text[n + drafted], expected[drafted] = token, path
        at = voters + 1
        drafted += 1
    kept = int(np.count_nonzero(expected[:drafted] >= _FLOOR))
    return Draft(text[n : n + kept], expected=expected[:kept])


def _copy(text: Tokens, source: int, to: int) -> None:
    """Fill the text from `to` on with what stands from `source` on, which may run into what is being written."""
    period = to - source
    while to < len(text):
        n = min(period, len(text) - to)
        text[to : to + n] = text[source : source + n]
        source, to = source + n, to + n


def _most_voted(following: Tokens, at: Indices) -> tuple[int, Indices]:
    """The most frequent token, on a tie the most recent, and the places that voted for it."""
    first = int(following[-1])
    same = following == first
    if same.all():
        return first, at
    votes: dict[int, int] = {}
    for token in reversed(following.tolist()):  # the first to reach the maximum is the most recent
        votes[token] = votes.get(token, 0) + 1
    best = max(votes, key=votes.__getitem__)
    return best, at[following == best]


def _tree(context: Tokens, levels: list[tuple[int, Indices]], k: int, branches: int) -> Draft:
    """Best-first: the k most likely continuations, at most `branches` children a node.

    levels: longest match first; what a longer match says of a first token is not asked of a shorter one.
    """
    tokens: list[int] = []
    parents: list[int] = []
    expected: list[float] = []
    heap: list[tuple[float, int, int, int, int, Indices]] = []  # -path, tie, token, parent row, match, voters
    tie = 0

    def push_children(at: Indices, row: int, match: int, path: float, taken: set[int]) -> None:
        nonlocal tie
        at = at[at < len(context)]
        values, votes = np.unique(context[at], return_counts=True)
        for i in np.argsort(-votes, kind="stable"):
            token, chance = int(values[i]), path * _confidence(int(votes[i]), len(at), match)
            if chance >= _FLOOR and token not in taken and len(taken) < branches:
                tie += 1
                taken.add(token)
                heapq.heappush(heap, (-chance, tie, token, row, match, at[context[at] == token]))

    first: set[int] = set()
    for match, ends in levels:
        push_children(ends + 1, 0, match, 1.0, first)
    while heap and len(tokens) < k:
        negative, _, token, parent, match, voters = heapq.heappop(heap)
        tokens.append(token)
        parents.append(parent)
        expected.append(-negative)
        push_children(voters + 1, len(tokens), match + 1, -negative, set())
    return Draft(np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64), expected=np.array(expected))
