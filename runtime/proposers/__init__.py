"""Proposers: one idea per file. Each guesses what follows; none of them can change the answer."""

from .draft_model import DraftModel
from .self_draft import CompressedCopy, SelfDraft
from .suffix import Suffix

__all__ = ["CompressedCopy", "DraftModel", "SelfDraft", "Suffix"]
