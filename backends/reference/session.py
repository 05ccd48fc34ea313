"""A cache of the reference engine, and the steps of a llama-like decoder over it, in plain numpy f32.

Every row attends to exactly the entries that it may see, in f32, with dequantized weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.errors import AbilityError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import Rows, ancestors, room_for
from ..common.saved_cache import Layout, pack, unpack
from .loaded_model import ReferenceModel

_ABILITIES: frozenset[Ability] = frozenset(
    {"tree", "evict_tokens", "evict_heads", "attend", "keys", "hidden", "queries", "attention", "fork", "save"}
)


class ReferenceSession(DecoderOnly):
    """A cache of exactly the entries that are there: (kv_heads, n_entries, head_dim) per layer."""

    abilities = _ABILITIES

    def __init__(self, model: ReferenceModel, max_context: int) -> None:
        self._model = model
        self.info = model.info
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._unseen: Indices = np.empty(0, dtype=np.int64)  # entries that steps do not see
        self._attended_from = 0  # entries that there were when those were chosen
        empty = np.empty((self.info.kv_heads, 0, self.info.head_dim), dtype=np.float32)
        self._keys: list[Floats] = [empty] * self.info.n_layers
        self._values: list[Floats] = [empty] * self.info.n_layers

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self._keys, *self._values))

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if not observe <= _ABILITIES:
            missing = ", ".join(sorted(observe - _ABILITIES))
            raise AbilityError(
                f"the reference engine does not give out {missing}; it has {', '.join(sorted(_ABILITIES))}."
            )
        positions = self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)
        self._model.check_open()
        n = len(tokens)
        inside = np.tril(np.ones((n, n), dtype=bool)) if parents is None else ancestors(parents)
        past = np.ones((n, self._rows.n), dtype=bool)
        past[:, self._unseen] = False
        visible = np.concatenate([past, inside], axis=1)
        model, eps = self._model, self._model.shape.norm_epsilon
        x = model.embedding[tokens]
        queries, attention = [], []
        for i, layer in enumerate(model.layers()):
            h = _rms_norm(x, layer.attention_norm, eps)
            q = self._rotate(self._heads(h @ layer.query.T + layer.query_bias), positions)
            k = self._rotate(self._heads(h @ layer.key.T + layer.key_bias), positions)
            v = self._heads(h @ layer.value.T + layer.value_bias)
            self._keys[i] = np.concatenate([self._keys[i], k], axis=1)
            self._values[i] = np.concatenate([self._values[i], v], axis=1)
            attended, shares = _attend(q, self._keys[i], self._values[i], visible)
            x += attended @ layer.output.T
            h = _rms_norm(x, layer.mlp_norm, eps)
            x += (_silu(h @ layer.gate.T) * (h @ layer.up.T)) @ layer.down.T
            queries.append(q)
            attention.append(shares)
        self._rows.append(positions, parents)
        hidden = _rms_norm(x, model.final_norm, eps)
        return Step(
            hidden[n - n_logits :] @ model.head.T,
            hidden=hidden if "hidden" in observe else None,
            queries=np.stack(queries) if "queries" in observe else None,
            attention=np.stack(attention) if "attention" in observe else None,
        )

    def truncate(self, n_tokens: int) -> None:
        self._rows.truncate(n_tokens)
        if self._rows.n < self._attended_from:
            self.attend(None)
        self._take(np.arange(self._rows.n))

    def accept(self, rows: Indices) -> None:
        entries = self._rows.accepted(rows)
        self._rows.keep(entries)
        self._take(entries)

    def keep(self, entries: Indices) -> None:
        self._rows.keep(self._rows.kept_by_head(entries, self.info.n_layers, self.info.kv_heads))
        self.attend(None)
        self._take(entries)

    def attend(self, entries: Indices | None) -> None:
        self._unseen = np.empty(0, dtype=np.int64) if entries is None else self._rows.unseen(entries)
        self._attended_from = 0 if entries is None else self._rows.n

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        return self._keys[layer], self._values[layer]

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> ReferenceSession:
        self._rows.check_settled()
        if entries is None:
            entries = np.arange(self._rows.n)
        entries = self._rows.kept_by_head(entries, self.info.n_layers, self.info.kv_heads)
        positions = self._rows.positions_of(entries)
        other = ReferenceSession(self._model, room_for(len(positions), max_context or self.max_context))
        other._keys, other._values = list(self._keys), list(self._values)  # never written in place
        other._take(entries)
        other._rows.replace(positions)
        return other

    def save(self) -> bytes:
        self._rows.check_settled()
        return pack(self.info, self.positions, [*self._keys, *self._values])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        positions, arrays = unpack(self.info, state, self.max_context, self._layout)
        self._rows.replace(positions)
        self.attend(None)
        held = [np.asarray(x, dtype=np.float32) for x in arrays]
        self._keys, self._values = held[: self.info.n_layers], held[self.info.n_layers :]

    def close(self) -> None:
        self._rows.close()
        self._keys, self._values = [], []

    def _layout(self, n: int) -> list[Layout]:
        return [(np.float32, (self.info.kv_heads, n, self.info.head_dim))] * (2 * self.info.n_layers)

    def _take(self, entries: Indices) -> None:
        """(n,), or (n_layers, kv_heads, n)"""
        if entries.ndim == 1:
            self._keys = [x[:, entries] for x in self._keys]
            self._values = [x[:, entries] for x in self._values]
            return
        self._keys = [np.take_along_axis(x, i[:, :, None], 1) for x, i in zip(self._keys, entries, strict=True)]
        self._values = [np.take_along_axis(x, i[:, :, None], 1) for x, i in zip(self._values, entries, strict=True)]

    def _heads(self, x: Floats) -> Floats:
        """(n, heads * head_dim) to (heads, n, head_dim)"""
        return x.reshape(len(x), -1, self.info.head_dim).swapaxes(0, 1)

    def _rotate(self, x: Floats, positions: Indices) -> Floats:
        """Rotary embedding in halves: (a, b) becomes (a cos - b sin, b cos + a sin). Source: Su et al. 2021."""
        a, b = np.split(x, 2, axis=-1)
        cos, sin = self._model.cos[positions], self._model.sin[positions]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _rms_norm(x: Floats, gain: Floats, epsilon: float) -> Floats:
    size: Floats = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(gain * x / np.sqrt(size + np.float32(epsilon)), dtype=np.float32)


def _silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(-x)), dtype=np.float32)


def _attend(q: Floats, k: Floats, v: Floats, visible: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Grouped-query attention.

    q: (heads, n, head_dim); k, v: (kv_heads, n_entries, head_dim); visible: (n, n_entries).
    Returns (n, heads * head_dim) and the softmax (heads, n, n_entries).
    """
    group = len(q) // len(k)
    scores = q @ np.repeat(k, group, axis=0).swapaxes(1, 2) / np.float32(np.sqrt(q.shape[-1]))
    scores = np.where(visible, scores, np.float32(-np.inf))
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = shares @ np.repeat(v, group, axis=0)
    return mixed.swapaxes(0, 1).reshape(q.shape[1], -1), shares
