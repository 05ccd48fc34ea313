"""One sequence over a decoder graph made elsewhere: chains of rows; what more it can do, the graph decides."""

from __future__ import annotations

import numpy as np

from ...runtime.errors import AbilityError, OptionError
from ...runtime.interfaces import UNOBSERVED, Floats, Indices, Observations, Step, Tokens
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import Rows, room_for
from ..common.saved_cache import Array, Layout, pack, unpack
from .foreign_model import ForeignModel
from .step import rows_run

_INSTEAD = "a .gguf file of the model on the onnx engine or the reference engine can."


class ForeignSession(DecoderOnly):
    """One cache over a ForeignModel. A rejected row is an entry that counts no more."""

    def __init__(self, model: ForeignModel, max_context: int) -> None:
        self._model, self.info, self.abilities = model, model.info, model.abilities
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._cache = model.new_cache()

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if observe:
            raise AbilityError(f"a graph made elsewhere does not give out {', '.join(sorted(observe))}; {_INSTEAD}")
        if parents is not None:
            raise AbilityError(
                f"a graph made elsewhere verifies no trees, as all its rows see those before; {_INSTEAD}"
            )
        positions = self._rows.plan(tokens, n_logits, None, self.info.vocab_size)
        n_past, width = self._rows.n, len(tokens)
        spare = rows_run(width) - width if n_past + width < self.info.context_length else 0
        ids = np.concatenate([tokens, np.repeat(tokens[-1:], spare)])
        places = np.concatenate([positions, positions[-1:] + 1 + np.arange(spare)])
        logits = self._model.step(ids, places, n_past, self._cache)
        self._rows.append(positions, None)
        return Step(logits[width - n_logits : width])

    def truncate(self, n_tokens: int) -> None:
        self._rows.truncate(n_tokens)

    def accept(self, rows: Indices) -> None:
        self._keep(self._rows.accepted(rows))

    def keep(self, entries: Indices) -> None:
        self._keep(self._kept(entries))

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        keys, values = self._cache.entries(self._rows.n)[2 * layer : 2 * layer + 2]
        return keys.astype(np.float32, copy=False), values.astype(np.float32, copy=False)

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> ForeignSession:
        self._rows.check_settled()
        chosen = np.arange(self._rows.n) if entries is None else self._kept(entries)
        other = ForeignSession(self._model, room_for(len(chosen), max_context or self.max_context))
        other._fill(self.positions[chosen], [x[:, chosen] for x in self._cache.entries(self._rows.n)])
        return other

    def save(self) -> bytes:
        self._rows.check_settled()
        return pack(self.info, self.positions, self._cache.entries(self._rows.n))

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        positions, entries = unpack(self.info, state, self.max_context, self._layout)
        if "evict_tokens" not in self.abilities and (positions != np.arange(len(positions))).any():
            raise OptionError("this is no cache of this graph: its positions have gaps.")
        self._fill(positions, entries)

    def close(self) -> None:
        self._rows.close()
        self._cache.close()

    def _kept(self, entries: Indices) -> Indices:
        """Checked entries to keep."""
        if "evict_tokens" not in self.abilities:
            raise AbilityError(
                "this graph was made elsewhere, and counts positions by the entries of its cache, so that none can be "
                f"given up; {_INSTEAD}"
            )
        return self._rows.kept(entries)

    def _keep(self, entries: Indices) -> None:
        if (entries != np.arange(len(entries))).any():  # else those behind them count no more, and that is all
            self._cache.keep(entries, self._rows.n)
        self._rows.keep(entries)

    def _fill(self, positions: Indices, entries: list[Array]) -> None:
        self._cache.fill(entries, len(positions))
        self._rows.replace(positions)

    def _layout(self, n: int) -> list[Layout]:
        shape = (self.info.kv_heads, n, self.info.head_dim)
        return [(self._model.cache_kind, shape)] * (2 * self.info.n_layers)
