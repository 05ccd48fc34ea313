"""A draft model beside a target, and weights that several models share."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache.compression import entries_for
from ..cache.policies.policy import CachePolicy
from ..cache.selection import selects
from ..cache.sequence import CachedSequence
from ..errors import OptionError
from ..interfaces import ModelInfo, Session, Weights
from ..profiling.row_classes import ANY_WIDTH
from ..text.tokenizer import Tokenizer
from .vocab_mapping import Pairing, Translation


@dataclass(frozen=True, slots=True)
class DraftWeights:
    """A draft model and what its single-token step costs.

    pairing, tokenizer: how its vocabulary fits the target's, and its own tokenizer, where the two differ.
    cache: compresses its cache whenever it is full, which costs accepted drafts and never a token of the answer.
    """

    weights: Weights
    token_s: float
    pairing: Pairing | None = None
    tokenizer: Tokenizer | None = None
    cache: CachePolicy | None = None

    def session(self, wanted: int) -> CachedSequence:
        """An empty cache for `wanted` tokens of its own, or what the policy keeps of them.

        Raises AbilityError and OptionError where the draft's engine cannot carry the policy out.
        """
        info = self.weights.info
        if self.cache is None:
            return CachedSequence(self.weights.session(min(wanted, info.context_length)))
        if selects(self.cache):
            raise OptionError(
                f"the {self.cache.name} policy keeps the whole cache and chooses at the ends of rounds, which a draft "
                "model has none of; give draft_cache='sinks' or another policy that evicts."
            )
        session = self.weights.session(entries_for(self.cache, ANY_WIDTH, info))
        try:
            return CachedSequence(session, policy=self.cache)
        except BaseException:
            session.close()
            raise

    def translation(self, target: Weights, tokenizer: Tokenizer) -> Translation | None:
        """Between the target's tokens and the draft's; None where every id means the same to both.

        Raises OptionError where one of the two reads a source and the other does not.
        """
        require_alike(target.info.encoder is not None, self.weights.info.encoder is not None)
        rows, draft_rows = target.info.vocab_size, self.weights.info.vocab_size
        if self.pairing is None or self.tokenizer is None:
            return None
        if self.pairing.kind == "identical" and draft_rows >= rows:
            return None
        if target.info.encoder is not None:
            raise OptionError(
                "the draft of an encoder-decoder model must have the same vocabulary: a source is not translated. "
                "Use draft=None; copies of the source are drafted anyway."
            )
        return Translation(self.pairing, tokenizer, self.tokenizer, rows=rows, draft_rows=draft_rows)


def require_alike(target_reads: bool, draft_reads: bool, draft: str = "the draft model") -> None:
    """Raise OptionError unless both are encoder-decoder models, or neither is."""
    if draft_reads and not target_reads:
        raise OptionError(
            f"{draft} is an encoder-decoder model, and this model is a decoder: the draft would need a source to read. "
            "Use a small decoder with the same vocabulary as the draft, or draft=None."
        )
    if target_reads and not draft_reads:
        raise OptionError(
            f"{draft} is a decoder, and this model is an encoder-decoder: the draft would never see the source. "
            "Use a smaller encoder-decoder model with the same vocabulary, or draft=None; copies of the source are "
            "drafted anyway."
        )


@dataclass(frozen=True, slots=True)
class Shared:
    """Weights that somebody else closes."""

    weights: Weights

    @property
    def info(self) -> ModelInfo:
        return self.weights.info

    def session(self, max_context: int | None = None) -> Session:
        return self.weights.session(max_context)

    def close(self) -> None:
        """Left to the owner."""
