"""Proposers and draft-length policies, and what one needs to write others. See docs/adding-a-proposer.md."""

from .runtime.interfaces import (
    EMPTY_DRAFT,
    Budget,
    Distribution,
    Draft,
    DraftLengthPolicy,
    Forecast,
    Proposer,
    SourceReader,
    Tokens,
)
from .runtime.speculation.draft_length import Confidence, Fixed, RenewalReward
from .runtime.speculation.proposers import NGram, SourceCopy, Suffix

__all__ = [
    "EMPTY_DRAFT",
    "Budget",
    "Confidence",
    "Distribution",
    "Draft",
    "DraftLengthPolicy",
    "Fixed",
    "Forecast",
    "NGram",
    "Proposer",
    "RenewalReward",
    "SourceCopy",
    "SourceReader",
    "Suffix",
    "Tokens",
]
