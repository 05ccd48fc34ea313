"""Who drafts for one model, with the caches that they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cache.compressed_copy import CompressedCopy
from ..cache.policies.policy import CachePolicy
from ..cache.quality_gate import QualityGatedCache
from ..cache.sequence import CachedSequence
from ..interfaces import Proposer, SourceReader, Weights
from ..sampling.sampling import Sampling
from ..several import several
from ..text.prompts import Task
from ..text.tokenizer import Tokenizer
from .draft_weights import DraftWeights
from .proposers import DraftModel, SelfDraft, default_proposers
from .proposers.self_draft import SmallerCache
from .vocab_mapping import Translation


class Drafters:
    """Lookups, and besides them a draft model, or the target itself over a compressed copy of its cache.

    sequence: the target's, which is only read. lookups: None is whoever costs next to nothing for this kind of model.
    """

    def __init__(
        self,
        sequence: CachedSequence,
        target: Weights,
        tokenizer: Tokenizer,
        lookups: Sequence[Proposer] | None,
        draft: DraftWeights | None,
        self_draft: CachePolicy | None,
        narrow: bool = False,
    ) -> None:
        """Raises OptionError for a draft model that does not fit, AbilityError for a copy that cannot be had."""
        self._sequence = sequence
        self._vocab_size = target.info.vocab_size
        self.lookups: tuple[Proposer, ...]
        self.lookups = default_proposers(target.info, narrow=narrow) if lookups is None else several(lookups)
        self._draft: CachedSequence | None = None
        self._translation: Translation | None = None
        if draft is not None:
            self._translation = draft.translation(target, tokenizer)
            wanted = sequence.longest * (1 if self._translation is None else 2)  # it may write longer
            self._draft = draft.session(wanted)
        self._copy: SmallerCache | None = None
        if self_draft is not None:
            mode = sequence.mode
            if isinstance(mode, QualityGatedCache) and not mode.drops:
                self._copy = mode.shadow
            else:
                self._copy = CompressedCopy(sequence, self_draft)

    @property
    def with_model(self) -> bool:
        """Whether anything is drafted by running a model."""
        return self._draft is not None or self._copy is not None

    @property
    def nbytes(self) -> int:
        """Bytes of their caches."""
        copied = 0 if self._copy is None else self._copy.nbytes
        return copied + (0 if self._draft is None else self._draft.session.nbytes)

    def of(self, task: Task, sampling: Sampling, seed: np.random.SeedSequence) -> tuple[Proposer, ...]:
        """Who drafts for one answer."""
        words, start = task.words, len(task.context)
        found = [
            p.reading(words, start) if words is not None and isinstance(p, SourceReader) else p for p in self.lookups
        ]
        rng = np.random.default_rng(seed)
        if self._copy is not None:
            if task.source is not None and not self._sequence.has_read(task.source):
                self._copy.close()  # it is about another source
            found.append(SelfDraft(self._copy, sampling, start, rng, self._vocab_size))
        elif self._draft is not None:
            translation, source = self._translation, task.source
            found.append(DraftModel(self._draft, sampling, start, rng, self._vocab_size, translation, source))
        return tuple(found)

    def close_copy(self) -> None:
        """Free the copy of the target's cache; it is made again when it is needed."""
        if self._copy is not None:
            self._copy.close()

    def close(self) -> None:
        """Free the draft model's cache."""
        if self._draft is not None:
            self._draft.session.close()
