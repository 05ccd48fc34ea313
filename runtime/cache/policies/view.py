"""What a cache policy may look at: the entries, and the last rows as they were run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...interfaces import Floats, Indices, ModelInfo, Session, Tokens

_BLOCK = 64  # rows whose attention is in memory at a time
_ONE_THREAD = 1 << 18  # multiplications up to which OpenBLAS starts no threads (interface/gemm.c)


@dataclass(slots=True)
class CacheView:
    """A full cache of n entries, the last `n_rows` of which have just been run under observation."""

    session: Session
    tokens: Tokens  # (n_rows,)
    context: Tokens = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # all tokens that the cache covers
    queries: Floats | None = None  # (n_layers, n_heads, n_rows, head_dim), after rotation
    shares: tuple[
        Floats, ...
    ] = ()  # attention as an engine shows it: (n_layers, n_heads, rows, entries then), in order
    surprise: Floats | None = None  # (n_rows,) -log p of each token; 0 for the first token of all
    carried: Floats | None = None  # scores that carry() was given when entries were selected last, of those that stayed
    to_carry: Floats | None = field(default=None, init=False)

    @property
    def info(self) -> ModelInfo:
        return self.session.info

    @property
    def n_entries(self) -> int:
        return len(self.session.positions)

    @property
    def positions(self) -> Indices:
        """(n_entries,)"""
        return self.session.positions

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        """Keys (after rotation) and values, each (kv_heads, n_entries, head_dim)."""
        return self.session.keys_values(layer)

    def layers_keys_values(self) -> Iterator[tuple[Floats, Floats]]:
        """keys_values() of every layer."""
        return map(self.keys_values, range(self.info.n_layers))

    def attention(self, layer: int) -> Iterator[Floats]:
        """Softmax of the watched rows over all entries, in blocks of rows, (kv_heads, group, rows, n_entries) each.

        group: the query heads that share a head of keys.
        """
        if self.queries is None:
            yield from self._shown(layer)
            return
        keys, _ = self.keys_values(layer)
        kv_heads, n, head_dim = keys.shape
        queries = self.queries[layer].reshape(kv_heads, -1, len(self.tokens), head_dim)
        queries = queries * np.float32(1.0 / np.sqrt(head_dim))
        first = n - len(self.tokens)  # entry of the first watched row
        for start in range(0, len(self.tokens), _BLOCK):
            part = queries[:, :, start : start + _BLOCK]
            rows = part.shape[2]
            flat = products(part.reshape(kv_heads, -1, head_dim), keys)
            scores: Floats = flat.reshape(kv_heads, -1, rows, n)
            seen = first + start  # entries that all of these rows see
            behind = np.arange(n - seen) > np.arange(rows)[:, None]
            scores[..., seen:] += np.where(behind, np.float32(-np.inf), np.float32(0.0))
            yield softmax(scores)

    def _shown(self, layer: int) -> Iterator[Floats]:
        for part in self.shares:
            heads = part[layer].reshape(self.info.kv_heads, -1, *part.shape[2:])
            yield np.pad(heads, [(0, 0)] * 3 + [(0, self.n_entries - heads.shape[-1])])

    def carry(self, scores: Floats) -> None:
        """Have the scores (..., n_entries) of the entries that stay back in `carried` next time."""
        self.to_carry = scores


def products(queries: Floats, keys: Floats) -> Floats:
    """(kv_heads, rows, n) dot products, in blocks so small that BLAS computes each in one thread.

    Its threads would wait for each other at every product, beside the engine's own, which may still be spinning:
    measured 20 times slower on two busy cores.
    """
    rows, head_dim = queries.shape[1:]
    step = max(_ONE_THREAD // (rows * head_dim), 1)
    found = np.empty((len(keys), rows, keys.shape[1]), dtype=np.float32)
    for start in range(0, keys.shape[1], step):
        np.matmul(queries, keys[:, start : start + step].swapaxes(1, 2), out=found[..., start : start + step])
    return found


def softmax(scores: Floats) -> Floats:
    """Over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def take(scores: Floats, entries: Indices) -> Floats:
    """The scores (..., n) of the entries that stay: (m,), or (n_layers, kv_heads, m) of scores of that many heads."""
    if entries.ndim == 1:
        return scores[..., entries]
    taken: npt.NDArray[np.float32] = np.take_along_axis(scores, entries, axis=-1)
    return taken
