"""Sessions over a graph of fixed shapes (docs/npu.md): the host keeps the cache, the device runs a ladder of shapes.

Nothing here knows an engine: a Runner runs one shape, and everything a session promises is numpy around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import AbilityError, NoMemoryError, OptionError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import Rows, ancestors, room_for
from ..common.saved_cache import Array, Layout, pack, unpack
from .loaded_model import Inputs, StaticModel

_ABILITIES: frozenset[Ability] = frozenset({"tree", "evict_tokens", "keys", "hidden", "fork", "save"})
_HIDDEN = np.float32(-3e4)  # added to a score: its share is 0 exactly, and half precision still holds it


class StaticSession(DecoderOnly):
    """One cache in numpy: (2 n_layers, 1, kv_heads, W, head_dim), keys and values in turn."""

    abilities = _ABILITIES

    def __init__(self, model: StaticModel, max_context: int) -> None:
        self._model, self._ladder = model, model.ladder
        self.info = model.info
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._windows = self._ladder.windows_for(max_context)
        self._cache = self._allocate(self._windows[0])
        self._written = 0  # columns from the entries' end up to here may hold what was forgotten

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if not observe <= _ABILITIES:
            missing = ", ".join(sorted(observe - _ABILITIES))
            raise AbilityError(f"graphs of fixed shapes do not give out {missing}; the reference engine does.")
        width, widest = len(tokens), self._ladder.widths[-1]
        if parents is not None and width > widest:
            raise OptionError(f"a tree of {width} rows is wider than the widest step of this device, {widest} rows.")
        positions = self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)
        runner = self._model.runner
        self._fit_window(self._rows.n + width)
        sees = np.tri(widest, dtype=bool) if parents is None else ancestors(parents)
        logits = np.empty((n_logits, self.info.vocab_size), dtype=np.float32)
        hidden = np.empty((width, self.info.hidden_size), dtype=np.float32)
        for start, end, rung in self._ladder.steps(width, n_logits):
            seen = np.tri(end - start, dtype=bool) if rung > widest else sees[: end - start, : end - start]
            inputs = self._inputs(tokens[start:end], positions[start:end], self._rows.n + start, rung, seen)
            outputs = runner.run(rung, self._cache.shape[3], inputs)
            self._write(outputs, self._rows.n + start, end - start)
            hidden[start:end] = outputs["hidden"][: end - start]
            wanted = max(start, width - n_logits)
            if wanted < end:
                logits[wanted - (width - n_logits) : end - (width - n_logits)] = outputs["logits"][
                    wanted - start : end - start
                ]
        self._rows.append(positions, parents)
        return Step(logits, hidden=hidden if "hidden" in observe else None)

    def truncate(self, n_tokens: int) -> None:
        self._rows.truncate(n_tokens)

    def accept(self, rows: Indices) -> None:
        self._gather(self._rows.accepted(rows), self._rows.n - self._rows.last_width)

    def keep(self, entries: Indices) -> None:
        self._gather(self._rows.kept(entries), 0)

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        n = self._rows.n
        return self._cache[2 * layer, 0, :, :n], self._cache[2 * layer + 1, 0, :, :n]

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> StaticSession:
        self._rows.check_settled()
        kept = np.arange(self._rows.n) if entries is None else self._rows.kept(entries)
        other = StaticSession(self._model, room_for(len(kept), max_context or self.max_context))
        other._fill(self.positions[kept], self._entries()[:, :, kept])
        return other

    def save(self) -> bytes:
        self._rows.check_settled()
        return pack(self.info, self.positions, [self._entries()])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        positions, (entries,) = unpack(self.info, state, self.max_context, self._layout)
        self._fill(positions, entries)

    def close(self) -> None:
        self._rows.close()
        self._cache = np.empty((0, 1, 0, 0, 0), dtype=np.float32)

    def _inputs(self, tokens: Tokens, positions: Indices, base: int, rung: int, sees: npt.NDArray[np.bool_]) -> Inputs:
        """One step's inputs behind `base` entries, padded to a rung: spare rows see nothing and are placed nowhere."""
        n, window = len(tokens), self._cache.shape[3]
        ids = np.full((1, rung), tokens[-1], dtype=np.int64)
        places = np.full((1, rung), positions[-1], dtype=np.int64)
        ids[0, :n], places[0, :n] = tokens, positions
        mask = np.full((1, 1, rung, window), _HIDDEN, dtype=np.float32)
        mask[0, 0, :n, :base] = 0.0
        mask[0, 0, :n, base : base + n][sees] = 0.0
        place = np.zeros((1, 1, window, rung), dtype=np.float32)
        place[0, 0, np.arange(base, base + n), np.arange(n)] = 1.0
        if self._written > base:  # the new rows are added to what stands there
            self._cache[:, :, :, base : self._written] = 0.0
            self._written = base
        rows = np.arange(rung if rung <= self._ladder.widths[-1] else 1, dtype=np.int64)
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": ids,
            "position_ids": places,
            "logit_rows": rows,
            "mask": mask,
            "place": place,
        }
        for i in range(self.info.n_layers):
            inputs[f"past_key_{i}"], inputs[f"past_value_{i}"] = self._cache[2 * i], self._cache[2 * i + 1]
        return inputs

    def _write(self, outputs: Mapping[str, Floats], base: int, n: int) -> None:
        self._written = base + n
        for i in range(self.info.n_layers):
            self._cache[2 * i, :, :, base : base + n] = outputs[f"new_key_{i}"][:, :, :n]
            self._cache[2 * i + 1, :, :, base : base + n] = outputs[f"new_value_{i}"][:, :, :n]

    def _layout(self, n_entries: int) -> list[Layout]:
        """What save() writes for so many entries."""
        return [(np.float32, (2 * self.info.n_layers, self.info.kv_heads, n_entries, self.info.head_dim))]

    def _entries(self) -> Floats:
        return self._cache[:, 0, :, : self._rows.n]

    def _fill(self, positions: Indices, entries: Array) -> None:
        n = len(positions)
        self._fit_window(n)
        self._cache[:, 0, :, :n] = entries
        self._written = max(self._written, n)
        self._rows.replace(positions)

    def _gather(self, entries: Indices, unchanged: int) -> None:
        """Move the kept entries together; those before `unchanged` stay where they are."""
        self._cache[:, :, :, unchanged : len(entries)] = self._cache[:, :, :, entries[unchanged:]]
        self._rows.keep(entries)

    def _fit_window(self, n_entries: int) -> None:
        """A window for so many entries: the next larger one, or a much smaller one."""
        present = self._cache.shape[3]
        wanted = next(w for w in self._windows if w >= n_entries)
        if wanted == present or (wanted < present and 2 * n_entries > wanted):  # not to and fro at the edge of one
            return
        old, n = self._cache, min(self._rows.n, wanted)
        self._cache = self._allocate(wanted)
        self._cache[:, :, :, :n] = old[:, :, :, :n]
        self._written = n

    def _allocate(self, window: int) -> Floats:
        shape = (2 * self.info.n_layers, 1, self.info.kv_heads, window, self.info.head_dim)
        try:
            return np.zeros(shape, dtype=np.float32)
        except MemoryError:
            raise NoMemoryError(
                f"there is no memory for a cache of {window} entries ({4 * math.prod(shape) >> 20} MiB). "
                "Close other programs, or open the session with a smaller max_context."
            ) from None
