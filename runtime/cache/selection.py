"""Steps that see the part of a cache that matters now: chosen anew every few tokens, with every entry kept."""

from __future__ import annotations

import time

from ..errors import AbilityError, OptionError
from ..interfaces import Floats, Session, Tokens
from .policies.policy import CachePolicy
from .policies.view import CacheView


def selects(policy: CachePolicy) -> bool:
    """Whether a policy names entries to see, and none to evict."""
    return "attend" in policy.needs


class Selection:
    """What the steps of an answer see of one cache.

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
        self.policy = policy
        self.rows = policy.rows
        self.seconds = 0.0  # spent on choosing, ever
        self.at: int | None = None  # tokens covered when it was chosen what is seen; None: everything is
        self.n_unseen = 0

    @property
    def limit(self) -> int:
        """Entries that are seen at most once something was chosen."""
        return self.policy.budget + self.policy.every

    def next(self, n_covered: int) -> int:
        """Number of covered tokens at which is chosen next."""
        if self.at is not None:
            return self.at + self.policy.every
        return max(n_covered, self.limit)

    def choose(self, session: Session, context: Tokens, queries: Floats) -> None:
        """Let later steps see what the policy names. queries: (n_layers, n_heads, rows, head_dim) of the last rows."""
        began = time.perf_counter()
        view = CacheView(session, context[len(context) - self.rows :], context, queries=queries)
        entries = self.policy.select(view)
        session.attend(entries)
        self.at, self.n_unseen = len(context), len(context) - len(entries)
        self.seconds += time.perf_counter() - began

    def forget(self, session: Session) -> None:
        """Everything is seen again."""
        if self.at is not None:
            session.attend(None)
        self.at, self.n_unseen = None, 0
