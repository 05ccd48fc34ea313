"""A smaller model drafts for a larger one."""

from __future__ import annotations

import numpy as np

from ...cache.sequence import CachedSequence
from ...errors import EngineError, NotFiniteError, OptionError
from ...interfaces import EMPTY_DRAFT, Budget, Distribution, Draft, Floats, Tokens
from ...sampling.sampling import Sampling
from ..vocab_mapping import Translation


class DraftModel:
    """Drafts with another session, which catches up by common prefix.

    The draft's cache is never rolled back by hand: whatever it holds beyond the common prefix with the committed
    sequence is forgotten at the next proposal, and whatever it lacks is run then. With a cache policy it is compressed
    then, too, where it is full.

    sampling: the target's own settings, so that q is shaped like p. Greedy settings make one-hot drafts.
    n_prompt: length of the prompt, for penalties that count generated tokens only.
    translation: between two vocabularies that differ. The distributions are distributions over the target's tokens
    then: of the shared
        ones, renormalised, and shaped by the target's settings; which is what the tokens are really drawn from.
    source: of an encoder-decoder model; read at the first proposal.
    """

    name = "draft-model"

    def __init__(
        self,
        sequence: CachedSequence,
        sampling: Sampling,
        n_prompt: int,
        rng: np.random.Generator,
        vocab_size: int,
        translation: Translation | None = None,
        source: Tokens | Floats | None = None,
    ) -> None:
        if translation is None and sequence.session.info.vocab_size < vocab_size:
            raise OptionError(
                f"the draft model knows {sequence.session.info.vocab_size} tokens and the target {vocab_size}: "
                "they cannot be paired. Use a draft with the target's vocabulary, or draft=None."
            )
        self._sequence = sequence
        self._sampling = sampling
        self._n_prompt = n_prompt
        self._rng = rng
        self._vocab_size = vocab_size  # of the target; a draft padded to more must not guess the padding
        self._translation = translation
        self._source = source

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """Up to budget.max_tokens tokens; fewer where the budget says that one more would not pay, or none where the
        context has outgrown the draft model. Raises EngineError for a draft model whose logits are no numbers."""
        try:
            return self.drafted(context, budget)
        except NotFiniteError as error:
            self._sequence.truncate(0)
            raise EngineError(
                "the draft model computed logits that are not numbers: its weights are damaged, or its engine fails at "
                "them. Fetch or export the draft anew, choose another, or load the model with draft=None."
            ) from error

    def drafted(self, context: Tokens, budget: Budget) -> Draft:
        """propose(), for weights that are the target's own: their errors are the target's, too."""
        if self._source is not None:
            self._sequence.encode(self._source)
        own = context if self._translation is None else self._translation.context(context)[0]
        k = min(budget.max_tokens, self._sequence.longest - len(own) + 1)
        if k < 1 or not len(own):
            return EMPTY_DRAFT
        logits = self._catch_up(own)
        tokens: list[int] = []
        distributions: list[Distribution] = []
        expected: list[float] = []
        path = 1.0
        while True:
            distribution = self._sampling.distribution(
                logits, np.concatenate([context, np.array(tokens, np.int64)]), self._n_prompt
            )
            token = distribution.pick(self._rng.random())
            confidence = distribution.prob(token) if not self._sampling.greedy else _top_share(logits)
            path *= confidence
            tokens.append(token)
            distributions.append(distribution)
            expected.append(path)
            if len(tokens) >= k or not self._can_read(token) or not budget.more(len(tokens), confidence):
                break
            logits = self._step(token)
        drawn = None if self._sampling.greedy else tuple(distributions)
        return Draft(np.array(tokens, dtype=np.int64), distributions=drawn, expected=np.array(expected))

    def _catch_up(self, context: Tokens) -> Floats:
        """Logits after the context, in the draft's tokens; runs only what the cache lacks, and at least its last."""
        lacking = len(context) - min(self._sequence.reusable(context), len(context) - 1)
        full = self._sequence.next_compression
        if full is not None and full < len(context):  # what was drafted on was drafted with a larger cache
            self._sequence.truncate(full)
            lacking = len(context)
        if lacking > 8:
            self._sequence.cover(context[:-1])
            lacking = 1
        self._sequence.truncate(len(context) - lacking)
        return self._run(context[len(context) - lacking :])

    def _can_read(self, token: int) -> bool:
        """False where a logits processor forbade every shared token, so that another was drawn."""
        return self._translation is None or self._translation.is_shared(token)

    def _step(self, token: int) -> Floats:
        own = token if self._translation is None else self._translation.token(token)
        return self._run(np.array([own], dtype=np.int64))

    def _run(self, tokens: Tokens) -> Floats:
        logits: Floats = self._sequence.forward(tokens, n_logits=1).logits[0]
        return logits[: self._vocab_size] if self._translation is None else self._translation.logits(logits)


def _top_share(logits: Floats) -> float:
    """Softmax probability of the most probable token."""
    return float(1.0 / np.exp(logits - logits.max()).sum())
