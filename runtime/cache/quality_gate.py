"""A cache that keeps everything until a smaller one is known to say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import OptionError
from ..interfaces import Distribution, Floats, Session, Tokens, Weights
from ..profiling.row_classes import RowRule
from ..sampling.sampling import Sampling
from .compression import Compression, entries_for
from .policies.policy import CachePolicy
from .saved import SavedSequence
from .selection import selects
from .sequence import CachedSequence
from .shadow import QualityReport, ShadowCache, resized

AUTO = 0.98  # quality="auto"


def open_sequence(
    target: Weights,
    rows: RowRule,
    *,
    cache: CachePolicy | None,
    self_draft: CachePolicy | None,
    quality: float | None,
    max_context: int | None,
) -> CachedSequence:
    """An empty cache of the target: full, compressed by `cache`, or full for as long as the quality is not known.

    self_draft: drafts for the target, by entries of the full cache; the quality is then that of the drafts, unless
        there is a policy for the cache. Raises AbilityError and OptionError.
    """
    if quality is not None:
        policy = tried_policy(cache, self_draft)
        return QualityGatedCache(
            lambda entries: target.session(entries or max_context), rows, policy, quality, drops=cache is not None
        )
    entries = max_context if cache is None else entries_for(cache, rows, target.info, max_context)
    return CachedSequence(target.session(entries), rows, cache)


def tried_policy(cache: CachePolicy | None, self_draft: CachePolicy | None) -> CachePolicy:
    """The policy that a quality is asked of. Raises OptionError where there is none, or one that evicts nothing."""
    policy = cache or self_draft
    if policy is None:
        raise OptionError(
            "quality= says how often a smaller cache must agree with the full one, and there is no smaller one: "
            "give cache= a policy (the full cache is dropped once the policy holds the quality), or draft='self' "
            "(the size of its cache follows the quality)."
        )
    if selects(policy):
        raise OptionError(
            f"the {policy.name} policy keeps the whole cache, so there is none to drop; give quality= a policy "
            "that evicts, or drop it."
        )
    return policy


class QualityGatedCache(CachedSequence):
    """A full cache with a compressed shadow beside it.

    drops: once the shadow is known to hold the quality, the full cache is closed and the shadow goes on in its place,
    from
        the next token on. That happens at counted tokens, where drafts end, and by what was committed alone: at the
        same token with drafts and without. False: the full cache stays, and the shadow drafts.
    open_session: makes the full cache (None), and makes it again where another text begins; or one of so many entries,
        for a conversation that goes on with a small one.
    """

    compares = True

    def __init__(
        self,
        open_session: Callable[[int | None], Session],
        rows: RowRule,
        policy: CachePolicy,
        quality: float,
        *,
        drops: bool,
    ) -> None:
        """Raises AbilityError and OptionError, as ShadowCache does."""
        self._open_session, self.drops = open_session, drops
        self._dropped_at: int | None = None  # tokens covered then
        self._answer_from = 0
        super().__init__(open_session(None), rows)
        self._longest = self.session.max_context
        if drops:  # a compressed cache's rows need positions for a while
            self._longest = min(self._longest, self.session.info.context_length - max(rows.maximum, policy.spare))
        try:
            self.shadow = ShadowCache(self, policy, quality, rows, shrinks=not drops)
        except BaseException:
            self.session.close()
            raise

    @property
    def longest(self) -> int:
        """How many tokens can be covered, before the full cache is dropped and after."""
        return self._longest

    @property
    def nbytes(self) -> int:
        """Bytes allocated; a shadow that drafts counts among the drafts."""
        return self.session.nbytes + (self.shadow.nbytes if self.drops else 0)

    @property
    def until_compression(self) -> int | None:
        """How many tokens can be committed before the caches are compared, or the one that is left is compressed."""
        if self.compression is not None:
            return super().until_compression
        return max(self.shadow.due - self._n, 0)

    def report(self) -> QualityReport:
        """What the trial has found so far."""
        shadow, agreement, at = self.shadow, self.shadow.agreement, self._dropped_at
        return QualityReport(
            policy=shadow.policy.name,
            budget=shadow.policy.budget,
            quality=shadow.quality,
            compared=agreement.n,
            agreed=agreement.total,
            at_least=agreement.at_least,
            dropped_at=None if at is None else max(at + 1 - self._answer_from, 0),
            kv_bytes=self.session.nbytes + self.shadow.nbytes,
        )

    def begin_answer(self, sampling: Sampling, n_prompt: int) -> None:
        self._answer_from = n_prompt
        if self._dropped_at is None:
            self.shadow.begin_answer(sampling, n_prompt)

    def committed(self, distributions: Sequence[Distribution]) -> None:
        if self._dropped_at is None:
            self.shadow.committed(distributions)

    def compress(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Compare the caches, if that is due, or compress the one that is left."""
        if self.compression is not None:
            super().compress(cancelled)
        elif self.until_compression == 0 and self.shadow.look(self.tokens) and self.drops:
            full, small = self.session, self.shadow.take()
            self.session, self.compression, self._dropped_at = small.session, small.compression, self._n
            self.shift = small.shift
            full.close()

    def truncate(self, n_tokens: int) -> None:
        """Where evicted entries are needed again, the full cache comes back, empty."""
        if self.compression is not None and n_tokens < self.compression.at:
            self._begin_anew()
        elif self.shadow.since is not None and n_tokens < self.shadow.since:
            self.shadow.forget()
        super().truncate(n_tokens)

    def encode(self, source: Tokens | Floats) -> None:
        if not self.has_read(source):
            self._begin_anew()
        super().encode(source)

    def save(self) -> SavedSequence:
        """The cache that is there, and what is known; a shadow that drafts decides nothing, so nothing of it is
        kept."""
        saved = super().save()
        return replace(saved, trial=self.shadow.saved(self._dropped_at)) if self.drops else saved

    def restore(self, saved: SavedSequence) -> None:
        trial, before = saved.trial, (self.session, self.compression)
        policy = self.shadow.policy if trial is None else resized(self.shadow.policy, trial.budget)
        small = saved.compressed is not None
        if small:
            session = self._open_session(entries_for(policy, self.rows, self.session.info))
            self.session, self.compression = session, Compression(policy, session, self.rows)
        elif self.compression is not None:
            self.session, self.compression = self._open_session(None), None
        try:
            super().restore(saved)
        except BaseException:
            if self.session is not before[0]:
                self.session.close()
                self.session, self.compression = before
            raise
        if self.session is not before[0]:
            before[0].close()
        self.shadow.forget()
        if trial is not None:
            self.shadow.restore(trial)
        self._dropped_at = None if trial is None else trial.dropped_at

    def close(self) -> None:
        self.shadow.close()
        super().close()

    def _begin_anew(self) -> None:
        self.shadow.forget()
        if self.compression is not None:
            self.session.close()
            self.session, self.compression, self._dropped_at = self._open_session(None), None, None
            self._n, self._source, self.shift = 0, None, 0
