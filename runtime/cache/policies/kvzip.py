"""What the model needs to say the text again stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...interfaces import Ability, Floats, Indices, Tokens
from .scorer import Scorer
from .view import CacheView, products, softmax

_POSTFIX = 8  # tokens before a chunk that tell which part is repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class KVzip(Scorer):
    """Keeps the entries that are attended to most, by any query, while the model reads the text a second time.

    The tokens since the last selection are run again behind the cache, in chunks, each after the 8 tokens before it,
    and forgotten. The score is the largest share that any row of a chunk's repetition gives an entry of the chunk, of
    the chunk, the sinks and the repetition itself. Scores of what stayed are carried on. For documents that are asked
    about often: no question is known when it selects, and every token is run twice.
    chunk: tokens that are repeated at a time, so many entries more must fit in.
    Source: Kim et al. 2025, KVzip. Deviations: the text is repeated without the words that ask for it, which a policy
    cannot encode; chunks of 256, not 2048; equal budgets for all heads, not one for all layers; sinks and window stay.
    """

    chunk: int = 256
    name = "kvzip"
    reads: ClassVar[frozenset[Ability]] = frozenset({"keys", "queries"})

    @property
    def spare(self) -> int:
        return self.chunk + _POSTFIX

    @property
    def shares(self) -> bool:
        return True

    def scores(self, view: CacheView) -> Floats:
        n, info = view.n_entries, view.info
        scores = np.zeros((info.n_layers, info.kv_heads, n), dtype=np.float32)
        known = 0
        if view.carried is not None:
            known = view.carried.shape[-1]
            scores[..., :known] = view.carried
        for start in range(known, n, self.chunk):
            stop = min(start + self.chunk, n)
            behind = len(view.context) - n  # tokens that have no entry of their own any more
            repeated = view.context[max(behind + start - _POSTFIX, 0) : behind + stop]
            for layer, shares in enumerate(_repetition(view, repeated, start, stop, self.sinks)):
                scores[layer, :, start:stop] = shares
        view.carry(scores)
        return scores


def _repetition(view: CacheView, tokens: Tokens, start: int, stop: int, sinks: int) -> Iterator[Floats]:
    """For every layer (kv_heads, stop - start): the largest share of each entry while the tokens are run."""
    session, n, rows = view.session, view.n_entries, len(tokens)
    end = int(view.positions[-1]) + 1
    step = session.forward(tokens, n_logits=0, observe=frozenset({"queries"}))
    assert step.queries is not None
    first = min(sinks, start)
    seen: Indices = np.r_[:first, start:stop, n : n + rows]
    try:
        for layer in range(view.info.n_layers):
            keys = session.keys_values(layer)[0][:, seen]
            kv_heads, _, head_dim = keys.shape
            flat = products(step.queries[layer].reshape(kv_heads, -1, head_dim), keys)
            scores = flat.reshape(kv_heads, -1, rows, len(seen)) * np.float32(1.0 / np.sqrt(head_dim))
            scores[..., len(seen) - rows :][..., np.triu(np.ones((rows, rows), dtype=bool), 1)] = -np.inf
            yield softmax(scores)[..., first : first + stop - start].max(axis=(1, 2))
    finally:
        session.truncate(end)
