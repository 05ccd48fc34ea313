"""The model drafts for itself with a smaller cache: quick steps at a long context, all of them checked by the full one.

The copy is made of the target's own entries, so nothing is run again; the target's cache is only read. Whatever the
policy forgets costs accepted drafts and never a token of the answer. Source: the drafts of TriForce (Sun et al. 2024)
and MagicDec (Chen et al. 2024), with any cache policy for their fixed ones.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...cache.sequence import CachedSequence
from ...interfaces import EMPTY_DRAFT, Budget, Draft, Tokens
from ...sampling.sampling import Sampling
from .draft_model import DraftModel


class SmallerCache(Protocol):
    """A compressed cache beside the target's: CompressedCopy, or ShadowCache, whose size follows what it loses."""

    @property
    def nbytes(self) -> int: ...

    def covering(self, context: Tokens) -> CachedSequence | None:
        """A sequence that covers a part of the context and has room for a draft; None: there is none worth using."""
        ...

    def close(self) -> None: ...


class SelfDraft:
    """Drafts with the target's own weights over a compressed copy of its cache.

    The share of its tokens that is accepted measures what the compression changes: it is 1 - TV, where TV is the total
    variation between the distribution of the next token with the compressed and with the full cache, on average over
    the drafted
    tokens that were judged. With greedy sampling it is how often both find the same token most probable.
    """

    name = "self"

    def __init__(
        self, copy: SmallerCache, sampling: Sampling, n_prompt: int, rng: np.random.Generator, vocab_size: int
    ) -> None:
        self._copy, self._sampling, self._n_prompt, self._rng = copy, sampling, n_prompt, rng
        self._vocab_size = vocab_size

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """Up to budget.max_tokens tokens; none where the context is so short that the full cache is as quick."""
        sequence = self._copy.covering(context)
        if sequence is None:
            return EMPTY_DRAFT
        drafter = DraftModel(sequence, self._sampling, self._n_prompt, self._rng, self._vocab_size)
        return drafter.drafted(context, budget)
