"""Tokens that a model was trained never to say: part of its law, for plain decoding and drafts alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .interfaces import Floats, Tokens
from .sampling import LogitsProcessor, Sampling


@dataclass(frozen=True, slots=True)
class Suppression:
    """Token ids without a chance anywhere in an answer, and those that no answer begins with.

    The names are those of transformers' settings for generating.
    """

    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()

    def applied(self, sampling: Sampling, n_prompt: int) -> Sampling:
        """The same settings without these tokens; what the caller's own processors do to them comes later."""
        processor = self.processor(n_prompt)
        return sampling if processor is None else replace(sampling, processors=(processor, *sampling.processors))

    def processor(self, n_prompt: int) -> LogitsProcessor | None:
        """What takes the tokens out of logits, in place, after a prompt of so many tokens; None: there are none."""
        always = np.array(self.suppress_tokens, dtype=np.int64)
        begin = np.union1d(always, np.array(self.begin_suppress_tokens, dtype=np.int64))
        if not len(begin):
            return None

        def without(logits: Floats, context: Tokens) -> Floats:
            logits[begin if len(context) == n_prompt else always] = -np.inf
            return logits

        return without
