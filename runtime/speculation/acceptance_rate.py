"""How often a proposer's tokens are accepted, learned from rounds whose rejected tails say nothing.

Acceptance is censored: after the first rejection nothing is known about the tokens behind it. So what is learned is
the *conditional* chance (this token accepted, given those before it), by the confidence the proposer itself stated:
a shift of the log-odds that all confidences share, which a handful of tokens show, and from there on each bin's own
record.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import mul, truediv

import numpy as np

from ..interfaces import Draft

_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95, 0.975, 0.99)  # of the bins of confidence
_PRIOR = 8.0  # weight of the stated confidence, shifted, in observations of its bin
_SHIFT_PRIOR = 2.0  # how firmly no shift at all is believed in, as the information (sum of p (1 - p)) of observations
_UNSURE = 1e-3  # nobody is surer than this: a certainty could not be shifted
_SAME = 1e-9  # confidences that differ by less are one: quotients of powers
_MEMORY = 0.98  # what an old observation is worth after one more: a window of 50
_MAX_DEPTH = 64


class Acceptance:
    """Maps one proposer's stated confidence to a calibrated chance, and remembers how confident it tends to be."""

    def __init__(self) -> None:
        n = len(_EDGES) + 1
        self._accepted, self._seen = [0.0] * n, [0.0] * n  # one number at a time, lists are faster than arrays
        self._shift, self._information = 0.0, _SHIFT_PRIOR  # one-dimensional logistic regression, step by step
        self._typical = [0.7] * _MAX_DEPTH  # calibrated confidence by depth, moving average

    def calibrate(self, stated: Sequence[float]) -> list[float]:
        """Chance of acceptance for tokens stated with these conditional confidences."""
        chances: list[float] = []
        for confidence, n in _runs(stated):
            bin_, shifted = bisect_right(_EDGES, confidence), self._shifted(confidence)
            chances += [(self._accepted[bin_] + _PRIOR * shifted) / (self._seen[bin_] + _PRIOR)] * n
        return chances

    def typical(self, k: int) -> list[float]:
        """Expected conditional chances of a draft not yet made."""
        known = self._typical[:k]
        return known + known[-1:] * (k - len(known))

    def observe(self, draft: Draft, rows: tuple[int, ...]) -> None:
        """Learn from a verified draft. rows: the accepted rows; children of any other row were never judged."""
        if not len(draft):
            return
        if draft.expected is None:
            self._learn_by_depth(draft, rows)
            return
        if draft.parents is None:  # judged: the accepted tokens and the one that was rejected
            self._learn_chain(draft.expected[: len(rows) + 1].tolist(), len(rows))
        else:
            judged = np.isin(draft.parents, (0, *rows))
            accepted = np.isin(np.arange(1, len(draft) + 1), rows)
            for stated, was_judged, hit in zip(conditional(draft), judged, accepted, strict=True):
                if was_judged:
                    self._learn(stated, bool(hit))

    def _learn_chain(self, paths: list[float], n_accepted: int) -> None:
        """paths: stated chance of every judged prefix. A run of tokens stated alike and accepted is learned in one
        step, as long drafts mostly are one, and a small model's step is as short as a few dozen operations on floats.
        """
        stated, depth = _quotients(paths, [1.0, *paths]), 0
        outcomes = [(run, True) for run in _runs(stated[:n_accepted])]
        outcomes += [(run, False) for run in _runs(stated[n_accepted:])]
        for (confidence, n), hit in outcomes:
            chance = self._learn(confidence, hit, n)
            self._typical[depth : depth + n] = [
                known + 0.1 * (chance - known) for known in self._typical[depth : depth + n]
            ]
            depth += n

    def _learn_by_depth(self, draft: Draft, rows: tuple[int, ...]) -> None:
        """A proposer that states no confidence has a record by depth instead; a tree counts as its first level."""
        judged = len(rows) + 1 if draft.parents is None else 1
        for depth in range(min(judged, len(draft), _MAX_DEPTH)):
            self._typical[depth] += 0.1 * (float(depth < len(rows)) - self._typical[depth])

    def _shifted(self, stated: float) -> float:
        stated = min(max(stated, _UNSURE), 1.0 - _UNSURE)
        odds = math.exp(self._shift) * stated
        return odds / (odds + 1.0 - stated)

    def _learn(self, stated: float, hit: bool, n: int = 1) -> float:
        """Count n tokens judged alike in the bin of their stated confidence, and return what that is worth now."""
        b, kept = bisect_right(_EDGES, stated), _MEMORY**n
        weight = (1.0 - kept) / (1.0 - _MEMORY)  # of the n, the older ones counting less
        shifted = self._shifted(stated)
        self._information += n * shifted * (1.0 - shifted) - (1.0 - kept) * (self._information - _SHIFT_PRIOR)
        self._shift += n * (hit - shifted) / self._information - (1.0 - kept) * self._shift
        self._seen[b] = self._seen[b] * kept + weight
        self._accepted[b] = self._accepted[b] * kept + hit * weight
        return (self._accepted[b] + _PRIOR * shifted) / (self._seen[b] + _PRIOR)


def conditional(draft: Draft) -> list[float]:
    """Stated confidence of each token given its parent."""
    assert draft.expected is not None
    paths = draft.expected.tolist()
    above = [1.0, *paths]
    if draft.parents is not None:
        above = [above[parent] for parent in draft.parents.tolist()]
    return _quotients(paths, above)


def _quotients(paths: list[float], above: list[float]) -> list[float]:
    """Confidence of the last token of each path, at most 1. above: of the paths that they go on from, perhaps more
    than those."""
    if 0.0 not in above:
        found = list(map(truediv, paths, above))
        if max(found, default=0.0) <= 1.0:  # as it should be, and faster than to look at each
            return found
    return [path / before if path < before else 1.0 for path, before in zip(paths, above, strict=False)]


def _runs(stated: Sequence[float]) -> list[tuple[float, int]]:
    """Neighbours stated alike, as (confidence, how many)."""
    rest = stated[1:]
    if rest and max(rest) - min(rest) <= _SAME:  # a copied text: mostly so, and found faster than one by one
        return [(stated[0], 1), (rest[0], len(rest))]
    runs: list[tuple[float, int]] = []
    for confidence in stated:
        if runs and abs(runs[-1][0] - confidence) <= _SAME:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((confidence, 1))
    return runs


def path_chances(draft: Draft, chances: Sequence[float]) -> list[float]:
    """Chance that the whole path down to each token is accepted, from conditional chances."""
    if draft.parents is None:
        return chain_chances(chances)
    path = [1.0]
    for parent, chance in zip(draft.parents.tolist(), chances, strict=True):
        path.append(path[parent] * chance)
    return path[1:]


def chain_chances(chances: Sequence[float]) -> list[float]:
    """The same for a chain."""
    return list(accumulate(chances, mul))
