"""Guesses from what the model itself has said so far, in this answer and in those before it."""

from __future__ import annotations

import numpy as np

from ...interfaces import EMPTY_DRAFT, Budget, Draft, Tokens
from ..ngram_table import LONGEST, NGramTable

_FLOOR = 0.05  # a path less likely than this is not followed


class NGram:
    """Drafts by a table of what followed the last few tokens, which learns every token that was committed.

    Deterministic, so drafts are one-hot. Costs a few microseconds a token; nearly always has a guess for the row that
    a round computes anyway. table: what it begins with; a new one is empty.
    """

    name = "ngram"

    def __init__(self, table: NGramTable | None = None) -> None:
        self.table = NGramTable() if table is None else table
        self._n = 0  # tokens of the answer's context that were learned or passed over,
        self._last = -1  # and the last of them

    def restart(self, table: NGramTable) -> None:
        """Know this and nothing else: a benchmark that asks the same again must not be told by its own answer."""
        self.table, self._n = table, 0

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """The likeliest continuation, with the chance of every prefix; empty where the end of the text is new."""
        self._follow(context)
        recent: list[int] = context[-LONGEST:].tolist()
        drafted: list[int] = []
        expected: list[float] = []
        path = 1.0
        while len(drafted) < budget.max_tokens and (guess := self.table.guess(recent)) is not None:
            path *= guess[1]
            if path < _FLOOR:
                break
            drafted.append(guess[0])
            expected.append(path)
            recent.append(guess[0])
        return Draft(np.array(drafted, dtype=np.int64), expected=np.array(expected)) if drafted else EMPTY_DRAFT

    def _follow(self, context: Tokens) -> None:
        """Learn what was committed since the last time; a prompt is nothing that the model said."""
        n = len(context)
        if 0 < self._n < n and context[self._n - 1] == self._last:
            begin = max(self._n - LONGEST, 0)
            self.table.learn(context[begin:].tolist(), self._n - begin)
        self._n, self._last = n, int(context[-1])
