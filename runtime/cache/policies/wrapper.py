"""What policies share that select by another policy's scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from ...errors import OptionError
from ...interfaces import Ability, Floats
from .policy import CachePolicy
from .settings import check_settings
from .snapkv import SnapKV
from .view import CacheView


@runtime_checkable
class Scores(CachePolicy, Protocol):
    """A policy that gives every entry a score: what can be wrapped."""

    @property
    def sinks(self) -> int:
        """The first entries, which always stay."""
        ...

    @property
    def shares(self) -> bool:
        """Whether scores are shares of attention: never negative, and none is weighed by its value."""
        ...

    def scores(self, view: CacheView) -> Floats:
        """(n_layers, kv_heads, n_entries)"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """Whole tokens stay, the same in all layers and heads, by the scores of another policy.

    scorer: who scores; its budget, every, sinks and window hold. Raises OptionError for a policy without scores.
    """

    scorer: Scores = field(default_factory=SnapKV)
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        check_settings(self)
        if not isinstance(self.scorer, Scores):
            raise OptionError(
                f"{self.prefix} wraps a policy that scores every entry, such as snapkv or keydiff, and {self.scorer} "
                "does not; take another, or use it as it is."
            )

    @property
    def name(self) -> str:
        return f"{self.prefix}{self.scorer.name}"

    @property
    def restart(self) -> int | None:
        return None

    @property
    def needs(self) -> frozenset[Ability]:
        return (self.scorer.needs - {"evict_heads"}) | {"evict_tokens"}

    @property
    def budget(self) -> int:
        return self.scorer.budget

    @property
    def every(self) -> int:
        return self.scorer.every

    @property
    def sinks(self) -> int:
        return self.scorer.sinks

    @property
    def window(self) -> int:
        return self.scorer.window

    @property
    def rows(self) -> int | None:
        return self.scorer.rows

    @property
    def spare(self) -> int:
        return self.scorer.spare

    @property
    def room(self) -> int:
        """Entries of the budget that neither sinks nor window take."""
        return self.budget - self.sinks - self.window
