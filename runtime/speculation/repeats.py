"""Where a text repeats itself, which its own tokens say alone."""

from __future__ import annotations

from itertools import pairwise

from ..interfaces import Tokens

_SHIFT = 32  # bits of a token


class Repeats:
    """Whether the text goes on from a pair of tokens that it has held before. One text: the context of one answer.

    Where it does not, a draft is seldom right, so that a step need not have room for one. That follows from the tokens
    alone: who drafts, and whether anybody does, changes nothing about it.
    """

    def __init__(self) -> None:
        self._pairs: set[int] = set()
        self._n = 0  # tokens whose pairs are known

    def at_end(self, context: Tokens) -> bool:
        """Whether the last two tokens have stood together before. context: (n,), longer from call to call."""
        n = len(context)
        if n < 2:
            return False
        first = max(self._n - 1, 0)
        known: list[int] = context[first:].tolist()
        self._pairs.update(a << _SHIFT | b for a, b in pairwise(known[:-1]))
        self._n = n - 1
        return known[-2] << _SHIFT | known[-1] in self._pairs

    def reach(self, context: Tokens, drafted: Tokens) -> int:
        """How many of the drafted tokens are, each with the one before it, such a pair, up to the first that is none.

        context: what at_end() was asked about last.
        """
        before, last = context[-2:].tolist()
        own = {before << _SHIFT | last}  # pairs of the draft count too: a text may begin to repeat inside it
        tokens: list[int] = drafted.tolist()
        for k, token in enumerate(tokens):
            pair = last << _SHIFT | token
            if pair not in self._pairs and pair not in own:
                return k
            own.add(pair)
            last = token
        return len(tokens)
