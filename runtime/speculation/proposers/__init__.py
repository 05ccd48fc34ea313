"""Proposers: one idea per file. Each guesses what follows; none of them can change the answer."""

from ...interfaces import ModelInfo, Proposer
from ..ngram_table import NGramTable
from .draft_model import DraftModel
from .ngram import NGram
from .self_draft import SelfDraft
from .source_copy import SourceCopy
from .suffix import Suffix

__all__ = ["DraftModel", "NGram", "SelfDraft", "SourceCopy", "Suffix", "default_proposers"]


def default_proposers(
    info: ModelInfo, speech: NGramTable | None = None, *, narrow: bool = False
) -> tuple[Proposer, ...]:
    """Who drafts for a model of this kind, at next to no cost, unless somebody else is named.

    speech: what is known of what the model says. narrow: only where the text repeats itself, which the text says best.
    """
    if info.encoder is not None and info.encoder.source_kind == "text":  # of a sound nothing can be copied
        return (SourceCopy(),)
    return (Suffix(),) if narrow else (Suffix(), NGram(speech))
