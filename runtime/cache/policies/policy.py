"""What a cache policy is: which entries of a full KV cache stay."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ...interfaces import Ability, Indices
from .view import CacheView


@runtime_checkable
class CachePolicy(Protocol):
    """Decides which entries stay when the cache is full. A value: it keeps nothing between two calls.

    The cache is full when it holds budget + every committed entries; select() then names at most `budget` of them, and
    is asked again after `every` more.
    So what a cache holds follows from the tokens it covers and from nothing else, with drafts or without.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[Ability]:
        """What the session must be able to do. "attention": of the watched rows; queries and keys do as well."""
        ...

    @property
    def budget(self) -> int:
        """Entries that stay."""
        ...

    @property
    def every(self) -> int:
        """Entries that are added before the next selection."""
        ...

    @property
    def window(self) -> int:
        """The last entries, which always stay."""
        ...

    @property
    def rows(self) -> int | None:
        """How many of the last tokens are run while select() watches, at most `every`; None: each token once.

        Watched are attention, where the policy needs it, and, where every token is, how surprising it was.
        """
        ...

    @property
    def spare(self) -> int:
        """Entries for which there must be room beside the full cache: those of rows that select() itself runs."""
        ...

    @property
    def restart(self) -> int | None:
        """With how many of the first tokens, before as many of the last as fill the budget, the cache is filled anew
        when the model's positions end. None: the context ends there.
        """
        ...

    def select(self, view: CacheView) -> Indices:
        """The entries to keep, ascending: (n,), or for every layer and head (n_layers, kv_heads, n)."""
        ...
