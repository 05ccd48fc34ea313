"""The arrays that everything is made of, and probability distributions over the vocabulary."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.int64]  # (n,)
Indices: TypeAlias = npt.NDArray[np.int64]  # (n,)
Floats: TypeAlias = npt.NDArray[np.float32]  # logits, hidden states, attention
Probs: TypeAlias = npt.NDArray[np.float64]  # distributions and chances

_CERTAIN: Probs = np.ones(1)
_CERTAIN.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Distribution:
    """A probability distribution over the vocabulary: p, q, or what is left of them after a rejection.

    Sparse where few tokens have mass: greedy decoding is a distribution with one id. Ids ascend, so a uniform number
    picks
    the same token from the sparse and from the dense form.
    """

    probs: Probs  # (m,) sums to 1
    ids: Indices | None = None  # (m,) ascending; None: probs cover the whole vocabulary

    @staticmethod
    @functools.lru_cache(
        maxsize=4096
    )  # in greedy decoding every token has such a distribution, and the same tokens come again
    def point(token: int) -> Distribution:
        """The distribution of a certain token: one object for all who ask, so nobody may write into it."""
        ids = np.array([token], dtype=np.int64)
        ids.flags.writeable = False
        return Distribution(_CERTAIN, ids)

    def prob(self, token: int) -> float:
        """Probability of one token."""
        if self.ids is None:
            return float(self.probs[token])
        i = int(np.searchsorted(self.ids, token))
        return float(self.probs[i]) if i < len(self.ids) and self.ids[i] == token else 0.0

    def pick(self, u: float) -> int:
        """The token at quantile u in [0, 1): inverse transform sampling, one uniform number a token."""
        if len(self.probs) == 1:
            return int(self.ids.item()) if self.ids is not None else 0
        cumulative = np.cumsum(self.probs)
        i = bisect_right(cumulative, u * cumulative[-1])  # never a token without mass, but
        if i == len(cumulative):  # where u * total was rounded up to the total
            i = int(np.flatnonzero(self.probs)[-1])
        return i if self.ids is None else int(self.ids[i])

    def without(self, token: int) -> Distribution:
        """This distribution given that it was not `token`: what the next sibling is drawn from, without replacement."""
        probs = self.probs.copy()
        probs[token if self.ids is None else self.ids == token] = 0.0
        return Distribution(probs / probs.sum(), self.ids)

    def dense(self, vocab_size: int) -> Probs:
        """Probabilities of the whole vocabulary, (vocab_size,)."""
        if self.ids is None:
            return self.probs
        full = np.zeros(vocab_size)
        full[self.ids] = self.probs
        return full


def as_tokens(tokens: Sequence[int] | npt.NDArray[np.integer]) -> Tokens:
    """A token array from anything that holds token ids."""
    return np.asarray(tokens, dtype=np.int64)
