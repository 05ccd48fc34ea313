"""One cache of an encoder-decoder on OpenVINO, and the keys and values of the source that it answers about.

The decoder reads the cache and gives out the rows to append, in memory of their own. A row sees all of the cache but
for what its bias hides, the room behind the entries included; so shapes change with the number of rows only, and when
the cache grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...runtime.errors import AbilityError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ..common.kv_arrays import KvArrays
from ..common.kv_rows import Rows, ancestors, room_for
from ..common.saved_cache import Array, Layout
from ..common.source_session import SourceSession
from .encoder_decoder_model import OvEncoder, OvEncoderDecoderModel
from .request import BoundRequest

_ABILITIES: frozenset[Ability] = frozenset(
    {"tree", "evict_tokens", "hidden", "queries", "keys", "fork", "save", "encode"}
)
_HIDDEN = -np.inf


class OvEncoderDecoderSession(SourceSession):
    """One sequence over an OvEncoderDecoderModel."""

    def __init__(self, model: OvEncoderDecoderModel, max_context: int) -> None:
        self._model = model
        self.info = model.info
        self.abilities = _ABILITIES
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._cache = KvArrays(self.info)
        self._source: Tokens | Floats | None = None
        self._crossed: dict[str, Floats] = {}  # shared with forks, and never written
        self._decoders: dict[bool, Decoder] = {}  # by whether queries are observed

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes + sum(x.nbytes for x in self._crossed.values())

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if not observe <= _ABILITIES:
            raise AbilityError(
                f"the openvino engine does not give out {', '.join(sorted(observe - _ABILITIES))} of an "
                "encoder-decoder model, and neither does the onnx engine."
            )
        positions = self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)
        self._require_source()
        decoder = self._decoder("queries" in observe)
        n = self._rows.n
        self._cache.reserve(n + len(tokens), n)
        seen = self._rows.with_new(positions) if self._model.relative else None
        logits = decoder.run(tokens, positions, n_logits, n, self._cache, parents, seen)
        self._cache.write(decoder.rows, n)
        self._rows.append(positions, parents)
        hidden = decoder.output("hidden") if "hidden" in observe else None
        if "queries" not in observe:
            return Step(logits, hidden=hidden)
        queries = np.concatenate([decoder.output(f"query_{i}") for i in range(self.info.n_layers)])
        return Step(logits, hidden=hidden, queries=queries)

    def truncate(self, n_tokens: int) -> None:
        self._rows.truncate(n_tokens)

    def accept(self, rows: Indices) -> None:
        kept = self._rows.accepted(rows)
        self._cache.gather(kept, self._rows.n - self._rows.last_width)
        self._rows.keep(kept)

    def keep(self, entries: Indices) -> None:
        self._rows.kept(entries)
        self._cache.gather(entries, 0)
        self._rows.keep(entries)

    def attend(self, entries: Indices | None) -> None:
        raise AbilityError(
            "steps of an encoder-decoder model see the whole cache here; of decoder models the onnx engine, the "
            "openvino engine and the reference engine can leave parts out."
        )

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        keys, values = self._cache.entries(self._rows.n)[2 * layer : 2 * layer + 2]
        return keys, values

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> OvEncoderDecoderSession:
        self._rows.check_settled()
        taken = None if entries is None else self._rows.kept(entries)
        positions = self.positions if taken is None else self.positions[taken]
        other = OvEncoderDecoderSession(self._model, room_for(len(positions), max_context or self.max_context))
        other._source, other._crossed = self._source, self._crossed
        other._fill(positions, self._cache.entries(self._rows.n) if taken is None else self._cache.selected(taken))
        return other

    def close(self) -> None:
        self._rows.close()
        self._cache.close()
        self._decoders.clear()
        self._crossed = {}

    def _encoder(self) -> OvEncoder:
        return self._model.encoder()

    def _entries(self) -> list[Array]:
        return [*self._cache.entries(self._rows.n)]

    def _layout(self, n: int) -> list[Layout]:
        return [(np.float32, (self.info.kv_heads, n, self.info.head_dim))] * (2 * self.info.n_layers)

    def _fill(self, positions: Indices, entries: Iterable[Array]) -> None:
        self._cache.fill(entries, len(positions))
        self._rows.replace(positions)

    def _see(self, source: Tokens | Floats, crossed: dict[str, Floats]) -> None:
        self._source, self._crossed = source, crossed
        for decoder in self._decoders.values():
            decoder.bind_source(crossed)

    def _decoder(self, observing: bool) -> Decoder:
        self._model.check_open()
        if observing not in self._decoders:
            made = Decoder(self._model.decoder(observing), self.info.vocab_size)
            made.bind_source(self._crossed)
            self._decoders[observing] = made
        return self._decoders[observing]


class Decoder(BoundRequest):
    """A step of the decoder: tells its request only what changed since the last one."""

    def __init__(self, compiled: Any, vocab_size: int) -> None:
        super().__init__(compiled)
        self._arrays: dict[str, Array] = {}  # the request keeps no array alive that it reads or writes
        self._cache: Array | None = None  # the one that is bound
        self._logits: Floats = np.empty((0, vocab_size), dtype=np.float32)
        self._shape: tuple[int, int, int] | None = None  # rows, logits and capacity that are bound
        self.rows: Floats = np.empty((0, 0, 0, 0), dtype=np.float32)  # that the last step appends to the cache

    def bind_source(self, crossed: dict[str, Floats]) -> None:
        """Keys and values of the source, by the names of inputs."""
        for name, values in crossed.items():
            self._give(name, values)

    def run(
        self,
        tokens: Tokens,
        positions: Indices,
        n_logits: int,
        n_past: int,
        cache: KvArrays,
        parents: Indices | None,
        seen: Indices | None,
    ) -> Floats:
        """Logits (n_logits, vocab_size), in memory that the next call writes over.

        seen: positions of all entries, the new ones last, for models with relative positions.
        """
        width, bound = len(tokens), self._arrays
        self._bind(width, n_logits, cache)
        bound["input_ids"][0], bound["position_ids"][0] = tokens, positions
        bound["entries"][:] = np.arange(n_past, n_past + width)
        if seen is not None:
            bound["entry_positions"][: len(seen)] = seen
        bias = bound["bias"][0, 0]
        bias[:, :n_past], bias[:, n_past:] = 0.0, _HIDDEN
        sees = np.tri(width, dtype=bool) if parents is None else ancestors(parents)
        bias[:, n_past : n_past + width][sees] = 0.0
        self._infer()
        return self._logits[:n_logits]

    def _bind(self, width: int, n_logits: int, cache: KvArrays) -> None:
        if self._cache is not cache.array:
            for i, part in enumerate(cache.array):
                self._give(f"past_{_part(i)}", part[None])
            self._cache = cache.array
        if self._shape == (width, n_logits, cache.capacity):
            return
        self._shape = width, n_logits, cache.capacity
        for name in ("input_ids", "position_ids"):
            self._give(name, np.zeros((1, width), dtype=np.int64))
        self._give("entries", np.zeros(width, dtype=np.int64))
        self._give("logit_rows", np.arange(width - n_logits, width, dtype=np.int64))
        self._give("bias", np.zeros((1, 1, width, cache.capacity), dtype=np.float32))
        if "entry_positions" in self._inputs:
            self._give("entry_positions", np.zeros(cache.capacity, dtype=np.int64))
        if n_logits > len(self._logits):
            self._logits = np.empty((n_logits, self._logits.shape[1]), dtype=np.float32)
        self._take("logits", self._logits[:n_logits])
        parts, heads, _, head_dim = cache.array.shape
        self.rows = np.empty((parts, heads, width, head_dim), dtype=np.float32)
        for i, part in enumerate(self.rows):
            self._take(f"new_{_part(i)}", part[None])

    def _give(self, name: str, array: Array) -> None:
        self._arrays[name] = self._bound(name, array)

    def _take(self, name: str, array: Array) -> None:
        self._arrays[name] = self._written(name, array)


def _part(i: int) -> str:
    """What the names of inputs and outputs end with, by the order in the cache."""
    return f"{'value' if i % 2 else 'key'}_{i // 2}"
