"""A cache that a policy compresses: when, after which look at the last tokens, and what is kept in mind until then."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..errors import AbilityError, EngineError, OptionError
from ..interfaces import Ability, Floats, Indices, ModelInfo, Observations, Session, Step, Tokens
from ..profiling.row_classes import RowRule
from ..sampling.log_softmax import log_sum_exp
from .mode import CacheMode, Watch
from .policies.policy import CachePolicy
from .policies.view import CacheView, take
from .saved import SavedCompression, SavedSequence
from .selection import selects

ENDLESS = 1 << 40  # tokens that a cache can cover which goes on whatever the model's context is
LOGIT_ROWS = 64  # rows of a watched step whose logits are wanted: they are large


def entries_for(policy: CachePolicy, rows: RowRule, info: ModelInfo, wanted: int | None = None) -> int:
    """How large a session to open: as large as the policy lets the cache become, and no larger than wanted."""
    if selects(policy):
        return info.context_length if wanted is None else wanted
    need = min(policy.budget + policy.every + max(rows.maximum, policy.spare), info.context_length)
    return need if wanted is None else min(need, wanted)


class CompressedCache(CacheMode):
    """A cache whose entries a policy evicts.

    It is full with `limit` committed entries, and then again `every` tokens later, which is the same where the
    policy keeps its whole budget. It is compressed before the token after them is run, so neither
    drafts nor where a prompt ends nor a turn of a conversation move the points at which that happens: what a compressed
    cache holds follows from the tokens that it covers. A draft ends where such a point is. Rolling back to before the
    last one is impossible; the cache is filled anew then.
    """

    def __init__(self, policy: CachePolicy, session: Session, rows: RowRule, covered: tuple[int, int] = (0, 0)) -> None:
        """covered: how many tokens the session covers already and how many of them it has no entries of, where the
        policy has just selected. Raises AbilityError and OptionError where the session cannot carry the policy out."""
        self.policy, self.session = policy, session
        self._check(session, rows)
        room = policy.budget + policy.every + max(rows.maximum, policy.spare)
        # Only where the kept tokens, read anew at the first positions, leave room for the next ones.
        self.endless = policy.restart is not None and room <= session.info.context_length
        self._spare = max(rows.maximum, policy.spare)  # rows that need positions for a while
        self.observe = _observed(policy, session.abilities)
        self.seconds = 0.0  # spent on choosing and moving entries, ever
        # Tokens covered at the last compression, and how many of them are gone.
        self._at, self._n_evicted = covered
        self._carried: Floats | None = None
        self._last_logits: Floats | None = None  # of the last token that was watched for its successor's surprise

    @property
    def bounded(self) -> bool:
        return True

    @property
    def longest(self) -> int:
        return ENDLESS if self.endless else self.session.info.context_length - self._spare

    @property
    def n_evicted(self) -> int:
        return self._n_evicted

    @property
    def fixed(self) -> int:
        return self._at

    @property
    def limit(self) -> int:
        """Entries of a full cache."""
        return self.policy.budget + self.policy.every

    def next(self, n_covered: int = 0) -> int:
        """Number of covered tokens at which the cache is compressed next."""
        return self._at + self.policy.every if self._at else self.limit

    def stop(self, n_prompt: int) -> int:
        return n_prompt if self.next() > n_prompt else self._watch_from

    def watch(self, n_covered: int) -> Watch:
        return Watch(self._watch_from, self._logit_rows, self.observe)

    def change(self, watched: list[Step], tokens: Tokens) -> Tokens | None:
        """Evict what the policy gives up. watched: the tokens that watch() names, spare rows cut off."""
        new = tokens[self._watch_from :]
        began = time.perf_counter()
        queries = [step.queries for step in watched if step.queries is not None]
        surprise, last = self._surprise(watched, new) if self._logit_rows else (None, None)
        view = CacheView(
            self.session,
            new,
            tokens,
            queries=np.concatenate(queries, axis=2) if queries else None,
            shares=tuple(step.attention for step in watched if step.attention is not None),
            surprise=surprise,
            carried=self._carried,
        )
        before = len(self.session.positions)
        entries = self.policy.select(view)
        self._check_selection(entries, before)
        self.session.keep(entries)
        self._carried = None if view.to_carry is None else take(view.to_carry, entries)
        self._last_logits = last
        self._at = self.next()
        self._n_evicted += before - entries.shape[-1]
        self.seconds += time.perf_counter() - began
        return self._kept(tokens) if self.endless and not self._fits_behind() else None

    def encode(self, source: Tokens | Floats) -> None:
        super().encode(source)
        self._begin()

    def truncate(self, n_tokens: int, n_positions: int) -> None:
        if n_tokens < self._at:
            self._begin()
        super().truncate(n_tokens, n_positions)

    def save(self, tokens: Tokens) -> SavedSequence:
        compressed = SavedCompression(self._at, self._n_evicted, self._carried, self._last_logits)
        return replace(super().save(tokens), compressed=compressed)

    def restore(self, saved: SavedSequence) -> None:
        super().restore(saved)
        self._begin()
        if saved.compressed is not None:
            self._at, self._n_evicted = saved.compressed.at, saved.compressed.n_evicted
            self._carried, self._last_logits = saved.compressed.carried, saved.compressed.last_logits

    def _begin(self) -> None:
        """Nothing is held."""
        self._at = self._n_evicted = 0
        self._carried = self._last_logits = None

    @property
    def _watch_from(self) -> int:
        """Number of covered tokens from which on the policy watches every row, up to `next`."""
        return self._at if self.policy.rows is None else self.next() - self.policy.rows

    @property
    def _logit_rows(self) -> int | None:
        """How many rows a watched step may have where their logits are wanted; None: they are not."""
        return LOGIT_ROWS if self.policy.rows is None and not self.observe else None

    def _kept(self, tokens: Tokens) -> Tokens:
        """The tokens that the cache is filled anew with."""
        first = self.policy.restart or 0
        return np.concatenate([tokens[:first], tokens[len(tokens) - self.policy.budget + first :]])

    def _fits_behind(self) -> bool:
        """Whether the model has positions enough for all tokens up to the next compression."""
        last = int(self.session.positions[-1])
        return last + 1 + self.policy.every + self._spare <= self.session.info.context_length

    def _surprise(self, watched: list[Step], tokens: Tokens) -> tuple[Floats, Floats]:
        """-log p of every watched token (0 for the first of all), and logits of the token after them."""
        found = np.zeros(len(tokens), dtype=np.float32)
        previous, row = self._last_logits, 0
        for step in watched:
            logits, total = step.logits.astype(np.float64), log_sum_exp(step.logits)
            after = tokens[row + 1 : row + 1 + len(logits)]
            found[row + 1 : row + 1 + len(after)] = total[: len(after)] - logits[np.arange(len(after)), after]
            row += len(logits)
        if previous is not None:
            found[0] = log_sum_exp(previous) - previous[tokens[0]]
        return found, watched[-1].logits[-1].copy()

    def _check_selection(self, entries: Indices, n: int) -> None:
        policy, rows = self.policy, entries.reshape(-1, entries.shape[-1])
        if rows.shape[1] > policy.budget:
            raise EngineError(
                f"the {policy.name} policy kept {rows.shape[1]} entries, but its budget is {policy.budget}; mend it."
            )
        if not (rows[:, -policy.window :] == np.arange(n - policy.window, n)).all():
            raise EngineError(
                f"the {policy.name} policy gave up some of the last {policy.window} entries, its window; mend it."
            )

    def _check(self, session: Session, rows: RowRule) -> None:
        policy, info = self.policy, session.info
        if not 1 <= policy.window <= policy.budget or policy.every < max(1, policy.rows or 0):
            raise OptionError(
                f"the {policy.name} cache policy has a window of {policy.window}, a budget of {policy.budget}, every "
                f"{policy.every} and watches {policy.rows} rows; it needs 1 <= window <= budget and rows <= every."
            )
        missing = missing_abilities(policy, session.abilities)
        if missing:
            alike = ", or per_head=False (one selection for all heads)" if missing == {"evict_heads"} else ""
            raise AbilityError(
                f"the {policy.name} cache policy needs {', '.join(sorted(missing))}, which the {info.engine} engine "
                f"does not offer here; use another engine{alike}. "
                "sinks and sirllm run on every engine that can drop tokens (docs/kv-cache.md).",
                engine=info.engine,
                missing=missing,
            )
        need = entries_for(policy, rows, info)
        if session.max_context < need:
            raise OptionError(
                f"the {policy.name} cache policy keeps {policy.budget} entries and adds {policy.every} before it "
                f"selects again, and a step takes up to {max(rows.maximum, policy.spare)}, but max_context is "
                f"{session.max_context}. "
                f"Give max_context={need} or more, or a smaller budget."
            )


def missing_abilities(policy: CachePolicy, abilities: frozenset[Ability]) -> frozenset[Ability]:
    """What a session with these abilities lacks to carry the policy out."""
    missing = policy.needs - abilities - {"attention"}
    if "attention" in policy.needs and not _observed(policy, abilities):
        missing |= {"attention"}
    return missing


def _observed(policy: CachePolicy, abilities: frozenset[Ability]) -> Observations:
    """What to observe of watched rows for a policy that reads attention; nothing where that cannot be had."""
    if "attention" not in policy.needs and not ("queries" in policy.needs and policy.rows):
        return frozenset()
    if {"queries", "keys"} <= abilities:
        return frozenset({"queries"})
    # Shown attention is rows x entries for every head: of a window, but not of all that was ever run.
    return frozenset({"attention"}) if policy.rows is not None and "attention" in abilities else frozenset()
