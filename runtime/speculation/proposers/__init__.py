"""Proposers: one idea per file. Each guesses what follows; none of them can change the answer."""

from ...interfaces import ModelInfo, Proposer
from .draft_model import DraftModel
from .self_draft import SelfDraft
from .source_copy import SourceCopy
from .suffix import Suffix

__all__ = ["DraftModel", "SelfDraft", "SourceCopy", "Suffix", "default_proposers"]


def default_proposers(info: ModelInfo) -> tuple[Proposer, ...]:
    """Who drafts for a model of this kind, at next to no cost, unless somebody else is named."""
    copies = info.encoder is not None and info.encoder.source_kind == "text"  # of a sound nothing can be copied
    return (SourceCopy(),) if copies else (Suffix(),)
