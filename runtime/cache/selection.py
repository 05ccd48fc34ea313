"""Steps that see the part of a cache that matters now: chosen anew every few tokens, with every entry kept."""

from __future__ import annotations

import time

import numpy as np

from ..errors import AbilityError, OptionError
from ..interfaces import Session, Step, Tokens
from .mode import CacheMode, Watch
from .policies.policy import CachePolicy
from .policies.view import CacheView
from .saved import SavedSequence


def selects(policy: CachePolicy) -> bool:
    """Whether a policy names entries to see, and none to evict."""
    return "attend" in policy.needs


class SelectiveCache(CacheMode):
    """A cache that keeps every entry, of which the steps of an answer see those that matter now.

    The tokens of a prompt see all before them. From its end on the policy chooses, between two rounds, every `every`
    committed tokens; a draft ends there, so drafts change nothing. A cache of up to budget + every entries is seen
    whole.
    """

    def __init__(self, policy: CachePolicy, session: Session) -> None:
        """Raises AbilityError and OptionError where the session cannot carry the policy out."""
        missing = policy.needs - session.abilities
        if missing:
            raise AbilityError(
                f"the {policy.name} cache policy needs {', '.join(sorted(missing))}, which the {session.info.engine} "
                "engine does not offer here; use another engine, or draft='self', which is quick at a long context on "
                "other engines, too.",
                engine=session.info.engine,
                missing=missing,
            )
        if policy.rows is None or policy.rows > policy.every:
            raise OptionError(
                f"the {policy.name} cache policy watches {policy.rows} rows every {policy.every} tokens; give it more "
                "tokens, or fewer rows."
            )
        self.policy, self.session = policy, session
        self.rows = policy.rows
        self.seconds = 0.0  # spent on choosing, ever
        self._at: int | None = None  # tokens covered when it was chosen what is seen; None: everything is
        self._n_unseen = 0

    @property
    def limit(self) -> int:
        """Entries that are seen at most once something was chosen."""
        return self.policy.budget + self.policy.every

    @property
    def n_unseen(self) -> int:
        return self._n_unseen

    def next(self, n_covered: int) -> int:
        """Number of covered tokens at which is chosen next."""
        if self._at is not None:
            return self._at + self.policy.every
        return max(n_covered, self.limit)

    def watch(self, n_covered: int) -> Watch:
        return Watch(n_covered - self.rows, observe=frozenset({"queries"}))

    def change(self, watched: list[Step], tokens: Tokens) -> None:
        """Let later steps see what the policy names."""
        queries = [step.queries for step in watched if step.queries is not None]
        began = time.perf_counter()
        view = CacheView(
            self.session, tokens[len(tokens) - self.rows :], tokens, queries=np.concatenate(queries, axis=2)
        )
        entries = self.policy.select(view)
        self.session.attend(entries)
        self._at, self._n_unseen = len(tokens), len(tokens) - len(entries)
        self.seconds += time.perf_counter() - began

    def truncate(self, n_tokens: int, n_positions: int) -> None:
        if self._at is not None and n_tokens < self._at:
            self.begin_prompt()
        super().truncate(n_tokens, n_positions)

    def begin_prompt(self) -> None:
        """Everything is seen again."""
        if self._at is not None:
            self.session.attend(None)
        self._at, self._n_unseen = None, 0

    def restore(self, saved: SavedSequence) -> None:
        super().restore(saved)
        self.begin_prompt()
