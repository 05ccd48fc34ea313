"""The model drafts for itself with a smaller cache: quick steps at a long context, all of them checked by the full one.

The copy is made of the target's own entries, so nothing is run again; the target's cache is only read. Whatever the
policy forgets costs accepted drafts and never a token of the answer. Source: the drafts of TriForce (Sun et al. 2024)
and MagicDec (Chen et al. 2024), with any cache policy for their fixed ones.
"""

from __future__ import annotations

import numpy as np

from ..cache_policies.policy import CachePolicy
from ..cache_policies.view import CacheView
from ..errors import AbilityError, OptionError
from ..interfaces import EMPTY_DRAFT, Budget, Draft, Floats, Indices, Session, Tokens
from ..rows import MAX_WIDTH
from ..sampling import Sampling
from ..sequence import CachedSequence
from .draft_model import DraftModel


class CompressedCopy:
    """Those entries of a target's cache that a policy would keep, in a session of their own.

    A copy is of use for `policy.every` tokens; then, and where the text before it has changed, the next one is made.
    Entries that drafting has added are replaced by the target's own that way.
    """

    def __init__(self, target: CachedSequence, policy: CachePolicy) -> None:
        """Raises AbilityError where the engine cannot copy entries or show them, and OptionError for policies that
        cannot look at a cache afterwards."""
        self.target, self.policy = target, policy
        _check(target.session, policy)
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
        if held < max(self._at, 1) or len(context) - self._at > self.policy.every:
            self._make(context[:-1], held >= self._at)
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
        rows = self.policy.rows or 0
        queries = self._watch(tokens, rows) if rows and {"attention", "queries"} & self.policy.needs else None
        view = CacheView(self.target.session, tokens[len(tokens) - rows :], queries=queries)
        chosen = self._take(self.policy.select(view), tokens)
        self.close()
        self._sequence, self._at = chosen, len(tokens)

    def _watch(self, tokens: Tokens, rows: int) -> Floats | None:
        """Queries of the last rows, (n_layers, n_heads, rows, head_dim).

        They are run on the present copy, or on one of the first and the last entries: close to what the full cache
        would give, at a fraction of its price, and the full cache is left alone.
        """
        n, budget, runner = self.target.n_entries, self.policy.budget, self._sequence
        if runner is None or runner.longest < len(tokens):
            runner = self._take(np.r_[:1, n - budget + 1 : n], tokens)
        runner.cover(tokens[: len(tokens) - rows])
        step = runner.session.forward(tokens[len(tokens) - rows :], n_logits=0, observe=frozenset({"queries"}))
        queries = None if step.queries is None else step.queries.copy()
        runner.session.truncate(len(tokens) - rows)
        if runner is not self._sequence:
            runner.session.close()
        return queries

    def _take(self, entries: Indices, tokens: Tokens) -> CachedSequence:
        room = min(self.policy.budget + self.policy.every + MAX_WIDTH, self.target.session.info.context_length)
        return CachedSequence(self.target.session.fork(entries, room), covered=tokens)


class SelfDraft:
    """Drafts with the target's own weights over a compressed copy of its cache.

    The share of its tokens that is accepted measures what the compression changes: it is 1 - TV, where TV is the total
    variation between the law of the next token with the compressed and with the full cache, on average over the drafted
    tokens that were judged. With greedy sampling it is how often both find the same token most probable.
    """

    name = "self"

    def __init__(
        self, copy: CompressedCopy, sampling: Sampling, n_prompt: int, rng: np.random.Generator, vocab_size: int
    ) -> None:
        self._copy, self._sampling, self._n_prompt, self._rng = copy, sampling, n_prompt, rng
        self._vocab_size = vocab_size

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """Up to budget.max_tokens tokens; none where the context is so short that the full cache is as quick."""
        sequence = self._copy.covering(context)
        if sequence is None:
            return EMPTY_DRAFT
        drafter = DraftModel(sequence, self._sampling, self._n_prompt, self._rng, self._vocab_size)
        return drafter.propose(context, budget)


def _check(session: Session, policy: CachePolicy) -> None:
    needs = {"fork", *policy.needs}
    if "attention" in needs:  # which the target would have to be run again for
        needs = needs - {"attention"} | {"queries", "keys"}
    missing = needs - session.abilities
    if missing:
        raise AbilityError(
            f"drafting for itself with the {policy.name} cache policy needs {', '.join(sorted(missing))}, which the "
            f"{session.info.engine} engine does not offer here; use draft='self:sinks', the onnx engine or the "
            "reference engine."
        )
    if policy.rows is None or policy.spare:
        raise OptionError(
            f"the {policy.name} cache policy watches every token as it is run, or runs it twice, and a copy of a cache "
            "comes later; "
            "choose one that looks at entries or at the last tokens: sinks, keydiff, snapkv, ..."
        )
