"""A cache of the reference engine, and the steps of a decoder over it, in plain numpy f32.

Every row attends to exactly the entries that it may see, in f32, with dequantized weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.errors import AbilityError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import ONE_SIZE, WHY_ONE_SIZE, Rows, ancestors, room_for
from ..common.saved_cache import Layout, pack, unpack
from .loaded_model import Layer, ReferenceModel
from .mlp import active, mlp_of

_ABILITIES: frozenset[Ability] = frozenset(
    {"tree", "evict_tokens", "evict_heads", "attend", "keys", "hidden", "queries", "attention", "fork", "save"}
)


class ReferenceSession(DecoderOnly):
    """A cache of exactly the entries that are there: (kv_heads, n_entries, head_dim) per layer."""

    def __init__(self, model: ReferenceModel, max_context: int) -> None:
        self._model = model
        self.abilities = _ABILITIES if model.shape.window is None else _ABILITIES - {"evict_heads"}
        if not model.shape.even:
            self.abilities -= ONE_SIZE
        self.info = model.info
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._unseen: Indices = np.empty(0, dtype=np.int64)  # entries that steps do not see
        self._attended_from = 0  # entries that there were when those were chosen
        self._keys: list[Floats] = [np.empty((x.kv_heads, 0, x.head_dim), np.float32) for x in model.shape.kept]
        self._values: list[Floats] = list(self._keys)

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self._keys, *self._values))

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if not observe <= self.abilities:
            missing = ", ".join(sorted(observe - self.abilities))
            if not self._model.shape.even:
                raise AbilityError(f"{WHY_ONE_SIZE}: {missing} of all layers is not to be had on the reference engine.")
            raise AbilityError(
                f"the reference engine does not give out {missing}; it has {', '.join(sorted(self.abilities))}."
            )
        positions = self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)
        self._model.check_open()
        n = len(tokens)
        inside = np.tril(np.ones((n, n), dtype=bool)) if parents is None else ancestors(parents)
        past = np.ones((n, self._rows.n), dtype=bool)
        past[:, self._unseen] = False
        visible = np.concatenate([past, inside], axis=1)
        model, s = self._model, self._model.shape
        places = self._rows.with_new(positions)
        x = model.embedding[tokens] * np.float32(s.embedding_scale)
        inputs = None if model.inputs is None else model.inputs.of(tokens, x, s.norm_epsilon)
        even, queries = s.even, list[Floats]()
        attention: list[Floats] = []
        for i, layer in enumerate(model.layers()):
            h = self._normed(x, layer.attention_norm)
            q, *new = self._projected(layer, h, positions)
            at, window = i if layer.kind.cache_of is None else layer.kind.cache_of, layer.kind.window
            if new:
                self._keys[at] = np.concatenate([self._keys[at], new[0]], axis=1)
                self._values[at] = np.concatenate([self._values[at], new[1]], axis=1)
            near = True if window is None else positions[:, None] - places < window
            attended, shares = _attend(
                q,
                self._keys[at],
                self._values[at],
                visible & near,
                s.score_scale,
                s.attention_softcap,
                layer.sinks,
            )
            h = attended @ layer.output.T + layer.output_bias
            x = x + self._normed(h, layer.attention_post_norm) * np.float32(s.residual_scale)
            h = self._normed(x, layer.mlp_norm)
            h = mlp_of(h, layer.mlp, layer.experts, s.family.activation)
            x = x + self._normed(h, layer.mlp_post_norm) * np.float32(s.residual_scale)
            if inputs is not None and layer.input_gate is not None and layer.input_projection is not None:
                h = active(np.asarray(x @ layer.input_gate.T), s.family.activation) * inputs[i]
                x = x + self._normed(h @ layer.input_projection.T, layer.input_post_norm)
            x = np.asarray(x * np.float32(layer.scale), dtype=np.float32)
            if not even:
                continue
            queries.append(q * np.float32(s.score_scale * s.head_dim**0.5))
            attention.append(shares)
        self._rows.append(positions, parents)
        hidden = self._normed(x, model.final_norm)
        logits = (hidden[n - n_logits :] @ model.head.T) * np.float32(s.logit_scale)
        return Step(
            logits if s.logit_softcap is None else _capped(logits, s.logit_softcap),
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
        self._rows.keep(self._kept(entries))
        self.attend(None)
        self._take(entries)

    def attend(self, entries: Indices | None) -> None:
        self._unseen = np.empty(0, dtype=np.int64) if entries is None else self._rows.unseen(entries)
        self._attended_from = 0 if entries is None else self._rows.n

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        if not self._model.shape.even:
            raise AbilityError(f"{WHY_ONE_SIZE}: they are not to be had on the reference engine either.")
        return self._keys[layer], self._values[layer]

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> ReferenceSession:
        self._rows.check_settled()
        if entries is None:
            entries = np.arange(self._rows.n)
        entries = self._kept(entries)
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
        self._keys, self._values = held[: len(held) // 2], held[len(held) // 2 :]

    def close(self) -> None:
        self._rows.close()
        self._keys, self._values = [], []

    def _layout(self, n: int) -> list[Layout]:
        return [*((np.float32, (x.kv_heads, n, x.head_dim)) for x in self._model.shape.kept)] * 2

    def _take(self, entries: Indices) -> None:
        """(n,), or (n_layers, kv_heads, n)"""
        if entries.ndim == 1:
            self._keys = [x[:, entries] for x in self._keys]
            self._values = [x[:, entries] for x in self._values]
            return
        self._keys = [np.take_along_axis(x, i[:, :, None], 1) for x, i in zip(self._keys, entries, strict=True)]
        self._values = [np.take_along_axis(x, i[:, :, None], 1) for x, i in zip(self._values, entries, strict=True)]

    def _kept(self, entries: Indices) -> Indices:
        """Checked entries to keep."""
        if entries.ndim > 1 and not self._model.shape.even:
            raise AbilityError(
                f"{WHY_ONE_SIZE}: entries per head are not to be had on the reference engine either. Evict tokens."
            )
        if entries.ndim > 1 and "evict_heads" not in self.abilities:
            raise AbilityError(
                "this model has layers with a window of attention, which is counted in positions that all heads share: "
                "entries per head are not to be had, not on the reference engine either. Evict whole tokens."
            )
        return self._rows.kept_by_head(entries, self.info.n_layers, self.info.kv_heads)

    def _normed(self, x: Floats, gain: Floats | None) -> Floats:
        """RMS norm of parts of each row, as wide as the gain; x itself where there is no gain."""
        if gain is None:
            return x
        parts = x.reshape(len(x), -1, len(gain))
        size = np.mean(parts * parts, axis=-1, keepdims=True, dtype=np.float32)
        epsilon = np.float32(self._model.shape.norm_epsilon)
        return np.asarray(gain * parts / np.sqrt(size + epsilon), dtype=np.float32).reshape(x.shape)

    def _projected(self, layer: Layer, h: Floats, positions: Indices) -> list[Floats]:
        """Query, key and value, each (heads, n, head_dim), as attention takes them; the query alone where the layer
        attends to what another one keeps."""
        s = self._model.shape
        temperature, rotation = s.temperature, layer.kind.rotation
        head_dim = s.head_dim if layer.kind.sizes is None else layer.kind.sizes.head_dim
        q = self._normed(h @ layer.query.T + layer.query_bias, layer.query_norm)
        if temperature is not None:
            q = q * temperature.at(positions)[:, None]
        turned = [q]
        if layer.key is not None and layer.key_bias is not None:
            k = h @ layer.key.T + layer.key_bias
            v = k if layer.value is None or layer.value_bias is None else h @ layer.value.T + layer.value_bias
            if s.family.value_norm:
                v = self._normed(v, np.ones(head_dim, dtype=np.float32))
            turned += [self._normed(k, layer.key_norm), v]
        turned = [x.reshape(len(x), -1, head_dim).swapaxes(0, 1) for x in turned]
        if rotation is None:
            return turned
        cos, sin = rotation.at(positions)
        return [*(_rotated(x, cos, sin) for x in turned[:2]), *turned[2:]]


def _rotated(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotary embedding in halves: (a, b) becomes (a cos - b sin, b cos + a sin); the rest of a head stays.

    Source: Su et al. 2021.
    """
    half = cos.shape[-1]
    a, b, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _capped(x: Floats, cap: float) -> Floats:
    return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)), dtype=np.float32)


def _attend(
    q: Floats,
    k: Floats,
    v: Floats,
    visible: npt.NDArray[np.bool_],
    scale: float,
    cap: float | None,
    sinks: Floats | None,
) -> tuple[Floats, Floats]:
    """Grouped-query attention.

    q: (heads, n, head_dim); k, v: (kv_heads, n_entries, head_dim); visible: (n, n_entries).
    sinks: (heads,), scores that take their share and give nothing.
    Returns (n, heads * head_dim) and the softmax (heads, n, n_entries), without the sinks' share.
    """
    group = len(q) // len(k)
    scores = q @ np.repeat(k, group, axis=0).swapaxes(1, 2) * np.float32(scale)
    scores = scores if cap is None else _capped(scores, cap)
    scores = np.where(visible, scores, np.float32(-np.inf))
    largest = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks[:, None, None])
    shares = np.exp(scores - largest)
    total = shares.sum(axis=-1, keepdims=True)
    whole = total if sinks is None else total + np.exp(sinks[:, None, None] - largest)
    mixed = (shares / whole) @ np.repeat(v, group, axis=0)
    shares /= total
    return mixed.swapaxes(0, 1).reshape(q.shape[1], -1), shares
