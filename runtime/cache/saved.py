"""What a saved conversation keeps of a cache."""

from __future__ import annotations

from dataclasses import dataclass

from ..interfaces import Floats, Tokens


@dataclass(frozen=True, slots=True)
class SavedGate:
    """What a trial remembers between two answers, when there is no shadow: each answer makes its own."""

    budget: int
    total: float  # of the agreement, and the tokens it is about
    n: int
    since: int | None
    too_small: int
    dropped_at: int | None  # tokens covered when the full cache was dropped


@dataclass(frozen=True, slots=True)
class SavedSequence:
    """What a CachedSequence needs to go on in another process."""

    tokens: Tokens
    entries: bytes  # of Session.save()
    compressed: SavedCompression | None
    trial: SavedGate | None = None


@dataclass(frozen=True, slots=True)
class SavedCompression:
    """What a Compression remembers, see there."""

    at: int
    n_evicted: int
    carried: Floats | None
    last_logits: Floats | None
