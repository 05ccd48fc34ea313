"""A cache that keeps everything until a smaller one is known to say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import OptionError
from ..interfaces import Distribution, Floats, Session, Step, Tokens, Weights
from ..profiling.row_classes import RowRule
from ..sampling.sampling import Sampling
from .compression import CompressedCache, entries_for
from .mode import CacheMode, FullCache, Watch
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
        mode = QualityGatedCache(
            lambda entries: target.session(entries or max_context), rows, policy, quality, drops=cache is not None
        )
        return CachedSequence(mode.session, rows, mode=mode)
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


class QualityGatedCache(CacheMode):
    """A full cache with a compressed shadow beside it.

    drops: once the shadow is known to hold the quality, the full cache is closed and the shadow goes on in its place,
        from the next token on. That happens at counted tokens, where drafts end, and by what was committed alone: at
        the same token with drafts and without. False: the full cache stays, and the shadow drafts.
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
        self._open_session, self._rows, self.drops = open_session, rows, drops
        self._dropped_at: int | None = None  # tokens covered then
        self._answer_from = 0
        self._held: CacheMode = FullCache(open_session(None))
        self.session = self._held.session
        self._longest = self._held.longest
        if drops:  # a compressed cache's rows need positions for a while
            self._longest = min(self._longest, self.session.info.context_length - max(rows.maximum, policy.spare))
        try:
            self.shadow = ShadowCache(self.session, policy, quality, rows, shrinks=not drops)
        except BaseException:
            self.session.close()
            raise

    @property
    def bounded(self) -> bool:
        return self._held.bounded

    @property
    def longest(self) -> int:
        """How many tokens can be covered, before the full cache is dropped and after."""
        return self._longest

    @property
    def n_evicted(self) -> int:
        return self._held.n_evicted

    @property
    def nbytes(self) -> int:
        """Bytes allocated; a shadow that drafts counts among the drafts."""
        return self.session.nbytes + (self.shadow.nbytes if self.drops else 0)

    @property
    def fixed(self) -> int:
        return self._held.fixed

    def next(self, n_covered: int) -> int | None:
        """Number of covered tokens at which the caches are compared, or the one that is left is compressed."""
        return self._held.next(n_covered) if self.bounded else max(self.shadow.due, n_covered)

    def stop(self, n_prompt: int) -> int:
        return self._held.stop(n_prompt)

    def watch(self, n_covered: int) -> Watch:
        return self._held.watch(n_covered)

    def change(self, watched: list[Step], tokens: Tokens) -> Tokens | None:
        """Compare the caches, or compress the one that is left."""
        if self.bounded:
            return self._held.change(watched, tokens)
        if self.shadow.look(self.session, tokens) and self.drops:
            self._hold(self.shadow.take())
            self._dropped_at = len(tokens)
        return None

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

    def encode(self, source: Tokens | Floats) -> None:
        full = FullCache(self._open_session(None)) if self.bounded else self._held
        self._try(full, lambda: full.encode(source))
        self.shadow.forget()
        self._dropped_at = None

    def truncate(self, n_tokens: int, n_positions: int) -> None:
        """Where evicted entries are needed again, the full cache comes back, empty."""
        if n_tokens < self.fixed:
            self.shadow.forget()
            self._hold(FullCache(self._open_session(None)))
            self._dropped_at = None
            return
        if self.shadow.since is not None and n_tokens < self.shadow.since:
            self.shadow.forget()
        self._held.truncate(n_tokens, n_positions)

    def save(self, tokens: Tokens) -> SavedSequence:
        """The cache that is there, and what is known; a shadow that drafts decides nothing, so nothing of it is
        kept."""
        saved = self._held.save(tokens)
        return replace(saved, trial=self.shadow.saved(self._dropped_at)) if self.drops else saved

    def restore(self, saved: SavedSequence) -> None:
        trial, held = saved.trial, self._held
        policy = self.shadow.policy if trial is None else resized(self.shadow.policy, trial.budget)
        if saved.compressed is not None:
            session = self._open_session(entries_for(policy, self._rows, self.session.info))
            held = CompressedCache(policy, session, self._rows)
        elif self.bounded:
            held = FullCache(self._open_session(None))
        self._try(held, lambda: held.restore(saved))
        self.shadow.forget()
        if trial is not None:
            self.shadow.restore(trial)
        self._dropped_at = None if trial is None else trial.dropped_at

    def close(self) -> None:
        self.shadow.close()
        self._held.close()

    def _hold(self, mode: CacheMode) -> None:
        """Go on with this one, and free what was held."""
        before, self._held, self.session = self._held, mode, mode.session
        if before is not mode:
            before.close()

    def _try(self, mode: CacheMode, fill: Callable[[], None]) -> None:
        """Go on with this one once it is filled; where that fails, everything is as before."""
        try:
            fill()
        except BaseException:
            if mode is not self._held:
                mode.close()
            raise
        self._hold(mode)
