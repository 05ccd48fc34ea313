"""A compressed cache on trial beside the full one: what it would say, token by token, and how large it must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import OptionError
from ..interfaces import Distribution, Floats, Session, Tokens
from ..profiling.row_classes import RowRule
from ..sampling.sampling import Sampling
from .agreement import Agreement, overlap
from .compressed_copy import check_copy, compressed_fork
from .compression import CompressedCache
from .mode import CacheMode
from .policies.policy import CachePolicy
from .policies.wrapper import Wrapper
from .saved import SavedGate
from .sequence import CachedSequence

BLOCK = 32  # tokens after which the two caches are compared: read at once, and few enough to keep their distributions


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What a trial has found. Tokens and agreement are those since the budget changed last."""

    policy: str
    budget: int  # entries that the policy keeps at present
    quality: float  # agreement that was asked for
    compared: int  # tokens of which both caches were asked
    agreed: float  # the sum of 1 - TV over them; with greedy sampling: how many were the same
    at_least: float  # the agreement, over these tokens, with a confidence of 95 %
    dropped_at: int | None  # tokens of this answer that the full cache made; None: it is there still
    kv_bytes: int  # of the caches that are there now


class ShadowCache:
    """What a policy keeps of the target's cache, and how often it says the same.

    It is made of the target's entries once these are more than the policy's, and from then on compressed by itself, as
    it would be if it was all there is. Every BLOCK committed tokens it reads them too, in one step, and the
    distribution of each
    is compared with the one that it was chosen by. So what is found, and all that follows from it, depends on the
    tokens alone: not on what was drafted, nor by whom.

    quality: the agreement wanted, 1 - TV. A budget that is known to miss it is doubled.
    shrinks: one that is known to hold it is halved, unless so little was too little before.
    """

    def __init__(self, target: Session, policy: CachePolicy, quality: float, rows: RowRule, *, shrinks: bool) -> None:
        """Raises AbilityError and OptionError where the engine cannot copy entries, or the policy cannot be carried out
        or have another budget."""
        if not 0.0 < quality < 1.0:
            raise OptionError(f"quality is {quality}, but must lie between 0 and 1: 0.98, say.")
        check_copy(target, policy, f"quality= with the {policy.name} cache policy")
        CompressedCache(policy, target, rows)  # whose checks hold for the shadow
        resized(policy, policy.budget)
        self.quality, self.rows, self.shrinks = quality, rows, shrinks
        self._first = policy
        self._sequence: CachedSequence | None = None
        self.forget()

    def forget(self) -> None:
        """Of another text: nothing is known."""
        self.close()
        self.policy = self._first
        self.agreement = Agreement()
        self.since: int | None = None  # tokens covered when the first comparison began
        self._too_small = 0

    def saved(self, dropped_at: int | None) -> SavedGate:
        """What restore() takes."""
        known = self.agreement
        return SavedGate(self.policy.budget, known.total, known.n, self.since, self._too_small, dropped_at)

    def restore(self, saved: SavedGate) -> None:
        """Know what was saved, of the text that was."""
        self.close()
        self.policy, self.agreement = resized(self._first, saved.budget), Agreement(saved.total, saved.n)
        self.since, self._too_small = saved.since, saved.too_small

    def close(self) -> None:
        """Free the shadow; what is known stays."""
        if self._sequence is not None:
            self._sequence.session.close()
        self._sequence, self._read = None, 0
        self._distributions: list[Distribution] = []

    def begin_answer(self, sampling: Sampling, n_prompt: int) -> None:
        """The shadow is made anew: it has not read the prompt."""
        self.close()
        self._sampling, self._n_prompt = sampling, n_prompt

    def committed(self, distributions: Sequence[Distribution]) -> None:
        """These distributions have chosen the last tokens."""
        if self._sequence is not None:
            self._distributions += distributions

    @property
    def nbytes(self) -> int:
        return 0 if self._sequence is None else self._sequence.session.nbytes

    @property
    def due(self) -> int:
        """Number of tokens covered by the target at which to look() next."""
        if self._sequence is None:
            return self.policy.budget + self.policy.every + 1
        full = self._sequence.next_compression
        assert full is not None
        return min(self._read + BLOCK, full)  # it may cover more, which was drafted

    def look(self, target: Session, tokens: Tokens) -> bool:
        """Compare, and make the budget larger or smaller. Whether the quality is known to hold.

        target: holds an entry of each of the tokens, which are as many as were due.
        """
        held = False
        if self._sequence is not None:
            self._compare(self._sequence, tokens)
            held = self.agreement.at_least >= self.quality
            if held and self.shrinks:
                self._shrink()
            elif self.agreement.at_most < self.quality:
                self._too_small = self.policy.budget
                self._resize(2 * self.policy.budget)
        if self._sequence is None and len(tokens) >= self.due:
            fork = compressed_fork(target, self.rows, self.policy, tokens)
            self._sequence = CachedSequence(fork.session, self.rows, self.policy, covered=tokens)
            self._read = len(tokens)
            self.since = self._read if self.since is None else self.since
        return held

    def covering(self, context: Tokens) -> CachedSequence | None:
        """See SmallerCache: the shadow may draft between two looks."""
        if self._sequence is None or self._sequence.common_prefix(context) < self._read:
            return None
        return self._sequence

    def take(self) -> CacheMode:
        """The compressed cache, covering what it has read; it is the caller's from now on."""
        taken, self._sequence = self._sequence, None
        assert taken is not None
        self.close()
        return taken.mode

    def _compare(self, shadow: CachedSequence, tokens: Tokens) -> None:
        shadow.truncate(self._read)  # forgets what was drafted with it
        logits = self._read_block(shadow, tokens[self._read :])
        for row, distribution in zip(logits, self._distributions, strict=True):
            self._read += 1
            self.agreement.add(
                overlap(distribution, self._sampling.distribution(row, tokens[: self._read], self._n_prompt))
            )
        self._distributions.clear()
        shadow.compress()

    def _read_block(self, shadow: CachedSequence, block: Tokens) -> Floats:
        """Logits after each of the tokens; (n, vocab_size)."""
        parts = []
        for start in range(0, len(block), self.rows.maximum):
            part = block[start : start + self.rows.maximum]
            parts.append(shadow.logits_after(part).copy())
        return np.concatenate(parts)

    def _shrink(self) -> None:
        try:
            smaller = resized(self.policy, self.policy.budget // 2)
        except OptionError:  # no room for what always stays
            smaller = self.policy
        if smaller.budget > self._too_small and smaller != self.policy:
            self._resize(smaller.budget)
        else:
            self.agreement = Agreement()  # begin another test: the text may change

    def _resize(self, budget: int) -> None:
        self.close()
        self.policy, self.agreement = resized(self.policy, budget), Agreement()


def resized(policy: CachePolicy, budget: int) -> CachePolicy:
    """The same policy with another budget. Raises OptionError for one that can have no other, or not this one."""
    if isinstance(policy, Wrapper):
        return dataclasses.replace(policy, scorer=resized(policy.scorer, budget))  # type: ignore[arg-type]
    if not dataclasses.is_dataclass(policy) or "budget" not in {f.name for f in dataclasses.fields(policy)}:
        raise OptionError(
            f"the {policy.name} cache policy is no dataclass with a field budget, so its budget cannot follow the "
            "quality; make it one, or drop quality=."
        )
    return dataclasses.replace(policy, budget=budget)
