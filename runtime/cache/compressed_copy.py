"""A copy of those entries of a cache that a policy would keep."""

from __future__ import annotations

import numpy as np

from ..errors import AbilityError, OptionError
from ..interfaces import Ability, Floats, Indices, Session, Tokens
from ..profiling.row_classes import MAX_WIDTH, RowRule
from .policies.policy import CachePolicy
from .policies.view import CacheView
from .sequence import CachedSequence


class CompressedCopy:
    """Those entries of a target's cache that a policy would keep, in a session of their own.

    A copy is of use for `policy.every` tokens; then, and where the text before it has changed, the next one is made.
    Entries that drafting has added are replaced by the target's own that way.
    """

    def __init__(self, target: CachedSequence, policy: CachePolicy) -> None:
        """Raises AbilityError and OptionError as check_copy() does."""
        self.target, self.policy = target, policy
        check_copy(target.session, policy, f"drafting for itself with the {policy.name} cache policy")
        self._sequence: CachedSequence | None = None
        self._at = 0  # tokens covered when the copy was made

    @property
    def nbytes(self) -> int:
        return 0 if self._sequence is None else self._sequence.session.nbytes

    def covering(self, context: Tokens) -> CachedSequence | None:
        """A sequence that covers a part of the context and has room for a draft, while the target covers all of it but
        its last token; None where the target's cache is so small that a copy would save nothing."""
        if self.target.n_entries <= self.policy.budget + self.policy.every:
            self.close()
            return None
        held = 0 if self._sequence is None else self._sequence.common_prefix(context)
        renewed = self._sequence is not None and self._sequence.shift != self.target.shift
        if renewed or held < max(self._at, 1) or len(context) - self._at > self.policy.every:
            self._make(context[:-1], held >= self._at and not renewed)
        return self._sequence

    def close(self) -> None:
        """Free the copy; the next one begins anew."""
        if self._sequence is not None:
            self._sequence.session.close()
        self._sequence, self._at = None, 0

    def _make(self, tokens: Tokens, current: bool) -> None:
        """Take what the policy selects of the target's entries. current: the present copy covers some of the tokens."""
        if not current:
            self.close()
        chosen = compressed_fork(self.target.session, self.target.rows, self.policy, tokens, self._sequence)
        self.close()
        self._sequence, self._at = chosen, len(tokens)


def compressed_fork(
    target: Session,
    target_rows: RowRule,
    policy: CachePolicy,
    tokens: Tokens,
    present: CachedSequence | None = None,
) -> CachedSequence:
    """What the policy selects of the target's entries, as a sequence that covers the same tokens.

    tokens: all that the target covers. present: an earlier copy, which covers some of them.
    """
    rows = policy.rows or 0
    widest = max(MAX_WIDTH, target_rows.maximum)
    room = min(policy.budget + policy.every + widest, target.info.context_length)

    def take(entries: Indices) -> CachedSequence:
        return CachedSequence(target.fork(entries, room), covered=tokens)

    queries = None
    if rows and {"attention", "queries"} & policy.needs:
        runner = present
        if runner is None or runner.longest < len(tokens):
            n = len(target.positions)
            runner = take(np.r_[:1, n - policy.budget + 1 : n])
        queries = _watch(runner, tokens, rows)
        if runner is not present:
            runner.session.close()
    return take(policy.select(CacheView(target, tokens[len(tokens) - rows :], queries=queries)))


def _watch(runner: CachedSequence, tokens: Tokens, rows: int) -> Floats | None:
    """Queries of the last rows, (n_layers, n_heads, rows, head_dim).

    They are run on the present copy, or on one of the first and the last entries: close to what the full cache
    would give, at a fraction of its price, and the full cache is left alone.
    """
    runner.cover(tokens[: len(tokens) - rows])
    step = runner.session.forward(tokens[len(tokens) - rows :], n_logits=0, observe=frozenset({"queries"}))
    queries = None if step.queries is None else step.queries.copy()
    runner.session.truncate(len(tokens) - rows - runner.shift)
    return queries


def missing_for_copies(policy: CachePolicy, abilities: frozenset[Ability]) -> frozenset[Ability]:
    """What a session with these abilities lacks for a copy of what the policy keeps."""
    needs: frozenset[Ability] = policy.needs | {"fork"}
    if "attention" in needs:  # which the target would have to be run again for
        needs = needs - {"attention"} | {"queries", "keys"}
    return needs - abilities


def check_copy(session: Session, policy: CachePolicy, what: str) -> None:
    """Raise AbilityError where the engine cannot copy entries or show them, and OptionError for policies that cannot
    look at a cache afterwards. what: needs it, as the subject of a sentence."""
    missing = missing_for_copies(policy, session.abilities)
    if missing:
        raise AbilityError(
            f"{what} needs {', '.join(sorted(missing))}, which the {session.info.engine} engine does not offer here; "
            "use the policy sinks (draft='self:sinks') or another engine.",
            engine=session.info.engine,
            missing=missing,
        )
    if policy.rows is None or policy.spare:
        raise OptionError(
            f"the {policy.name} cache policy watches every token as it is run, or runs it twice, and a copy of a cache "
            "comes later; "
            "choose one that looks at entries or at the last tokens: sinks, keydiff, snapkv, ..."
        )
