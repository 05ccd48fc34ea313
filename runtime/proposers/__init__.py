"""Proposers: one idea per file. Each guesses what follows; none of them can change the answer."""

from ..interfaces import ModelInfo, Proposer
from .draft_model import DraftModel
from .self_draft import SelfDraft
from .source_copy import SourceCopy
from .suffix import Suffix

__all__ = ["DraftModel", "SelfDraft", "SourceCopy", "Suffix", "default_proposers"]


def default_proposers(info: ModelInfo) -> tuple[Proposer, ...]:
    """Who drafts for a model of this kind, at next to no cost, unless somebody else is named."""
    return (Suffix(),) if info.encoder is None else (SourceCopy(),)
