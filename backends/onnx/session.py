"""One cache over ONNX Runtime: bound memory, a cache that grows, rewinding by length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import AbilityError, EngineError, NoMemoryError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ...runtime.leaving import in_engine
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import ONE_SIZE, WHY_ONE_SIZE, Rows, ancestors, room_for, take_rows
from ..common.saved_cache import Array, Layout, pack, unpack
from .loaded_model import OrtModel
from .step import BoundStep, rows_run

_ABILITIES: frozenset[Ability] = frozenset(
    {"tree", "evict_tokens", "evict_heads", "keys", "hidden", "queries", "fork", "save"}
)
_GROWTH = 512  # entries a cache begins with, at most
_GIVEN_BACK = 4  # memory goes back to the system once so many times as much is held as the kept entries need
_MAX_STEPS = 64  # widths whose bindings are remembered
_HIDDEN_BIAS = -np.inf


class OrtSession(DecoderOnly):
    """One cache over an OrtModel. Keys and values lie in (1, kv_heads, capacity, head_dim) arrays that grow, one pair
    for each layer that keeps any."""

    def __init__(self, model: OrtModel, max_context: int) -> None:
        self._model = model
        self.abilities = _ABILITIES if model.window is None else _ABILITIES - {"evict_heads"}
        if not model.even:
            self.abilities -= ONE_SIZE
        self.info = model.info
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._kind: type[np.generic] = np.float32 if model.scales is None else np.int8  # what entries are stored as
        self._cache: list[Array] = []
        self._values: list[Any] = []
        self._capacity = 0
        self._zeros = np.zeros(0, dtype=np.float32)
        self._logits: Floats = np.empty((0, self.info.vocab_size), dtype=np.float32)  # shared by steps of all widths
        self._steps: dict[tuple[int, int], BoundStep] = {}
        self._bindings: dict[tuple[int, int], Any] = {}
        self._grow(min(_GROWTH, max_context))

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self._cache)

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if not observe <= self.abilities:
            missing = ", ".join(sorted(observe - self.abilities))
            if not self._model.even:
                raise AbilityError(f"{WHY_ONE_SIZE}: {missing} of all layers is not to be had on the onnx engine.")
            raise AbilityError(f"the onnx engine does not give out {missing}; the reference engine does.")
        positions = self._plan(tokens, n_logits, parents)
        width, spare = len(tokens), rows_run(len(tokens)) - len(tokens)
        total = self._rows.n + width + spare
        if total > self._capacity:
            self._grow(max(total, min(2 * self._capacity, self.max_context)))
        step = self._step(width, n_logits)
        step.fill(tokens, positions)
        above = np.append(parents, width - 1) if spare and parents is not None else parents
        observed = self._run(step, self._biases(step.positions[0], total, above), observe)
        self._rows.append(positions, parents)
        logits = step.logits[:n_logits]
        if not observed:
            return Step(logits)
        hidden, queries = observed.get("hidden"), observed.get("queries")
        return Step(
            logits,
            hidden=None if hidden is None else hidden[:width],
            queries=None if queries is None else queries[:, :, :width],
        )

    def truncate(self, n_tokens: int) -> None:
        self._rows.truncate(n_tokens)

    def accept(self, rows: Indices) -> None:
        self._gather(self._rows.accepted(rows), self._rows.n - self._rows.last_width)

    def keep(self, entries: Indices) -> None:
        entries = self._kept(entries)
        if entries.ndim == 1:
            self._gather(entries, 0)
        else:
            for i, x in enumerate(self._cache):
                x[0, :, : entries.shape[-1]] = take_rows(x[0], entries[i // 2])
            self._rows.keep(entries)
        if _GIVEN_BACK * max(self._rows.n, _GROWTH) <= self._capacity:
            self._grow(max(self._rows.n, _GROWTH))

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        if not self._model.even:
            raise AbilityError(f"{WHY_ONE_SIZE}: they are not to be had on the onnx engine.")
        n, scales = self._rows.n, self._model.scales
        keys, values = (x[0, :, :n] for x in self._cache[2 * layer : 2 * layer + 2])
        if scales is None:
            return keys.view(np.float32), values.view(np.float32)
        return keys * scales[2 * layer][:, None], values * scales[2 * layer + 1][:, None]

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> OrtSession:
        self._rows.check_settled()
        entries = None if entries is None else self._kept(entries)
        positions = self.positions if entries is None else self._rows.positions_of(entries)
        other = self._empty(room_for(len(positions), max_context or self.max_context))
        other._fill(positions, self._entries() if entries is None else self._selected(entries))
        return other

    def save(self) -> bytes:
        self._rows.check_settled()
        return pack(self.info, self.positions, self._entries())

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        self._fill(*unpack(self.info, state, self.max_context, self._layout))

    def close(self) -> None:
        self._rows.close()
        self._bindings.clear()
        self._steps.clear()
        self._values.clear()
        self._cache.clear()

    def _empty(self, max_context: int) -> OrtSession:
        """Another session like this one, without entries."""
        return OrtSession(self._model, max_context)

    def _plan(self, tokens: Tokens, n_logits: int, parents: Indices | None) -> Indices:
        """Positions of new rows; raises for what cannot be run."""
        return self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)

    def _kept(self, entries: Indices) -> Indices:
        """Checked entries to keep."""
        if entries.ndim > 1 and not self._model.even:
            raise AbilityError(
                f"{WHY_ONE_SIZE}: entries per head are not to be had on the onnx engine. Evict whole tokens."
            )
        if entries.ndim > 1 and "evict_heads" not in self.abilities:
            raise AbilityError(
                "this model has layers with a window of attention, which is counted in positions that all heads share: "
                "entries per head are not to be had on the onnx engine; on the reference engine models without one do."
            )
        return self._rows.kept_by_head(entries, self.info.n_layers, self.info.kv_heads)

    def _selected(self, entries: Indices) -> Iterator[Array]:
        """Of every array (kv_heads, n, head_dim) these entries."""
        for i, x in enumerate(self._cache):
            yield take_rows(x[0], entries if entries.ndim == 1 else entries[i // 2])

    def _layout(self, n: int) -> list[Layout]:
        return [(self._kind, (heads, n, head_dim)) for heads, head_dim in self._model.cache]

    def _entries(self) -> list[Array]:
        return [x[0, :, : self._rows.n] for x in self._cache]

    def _fill(self, positions: Indices, entries: Iterable[Array]) -> None:
        if len(positions) > self._capacity:
            self._grow(len(positions))
        for x, held in zip(self._cache, entries, strict=True):
            x[0, :, : len(positions)] = held
        self._rows.replace(positions)

    def _gather(self, entries: Indices, unchanged: int) -> None:
        """Move the kept entries together, in place; those before `unchanged` stay where they are."""
        moved = entries[unchanged:]
        for x in self._cache:
            x[0, :, unchanged : len(entries)] = take_rows(x[0], moved)
        self._rows.keep(entries)

    def _grow(self, capacity: int) -> None:
        """Hold the entries in arrays of this size, which may be a smaller one."""
        shapes = [(1, heads, capacity, head_dim) for heads, head_dim in self._model.cache]
        try:
            grown: list[Array] = [np.empty(shape, dtype=self._kind) for shape in shapes]
        except (MemoryError, ValueError):  # numpy's, for sizes beyond any address
            mebibytes = np.dtype(self._kind).itemsize * sum(map(math.prod, shapes)) >> 20
            raise NoMemoryError(
                f"there is no memory for a cache of {capacity} entries ({mebibytes} MiB). "
                "Close other programs, or open the session with a smaller max_context."
            ) from None
        for old, new in zip(self._cache, grown, strict=False):
            new[:, :, : self._rows.n] = old[:, :, : self._rows.n]
        self._cache, self._capacity = grown, capacity
        self._values = [self._model.ort.OrtValue.ortvalue_from_numpy(x) for x in grown]
        self._bindings.clear()  # they point into the old arrays

    def _step(self, width: int, n_logits: int) -> BoundStep:
        key, n_read = (width, n_logits), rows_run(n_logits)
        if key not in self._steps:
            if len(self._steps) >= _MAX_STEPS or n_read > len(self._logits):
                self._steps.clear()
                self._bindings.clear()
            if n_read > len(self._logits):
                self._logits = np.empty((n_read, self.info.vocab_size), dtype=np.float32)
            self._steps[key] = BoundStep(self._model.ort, width, n_logits, self._logits[:n_read])
        return self._steps[key]

    def _bias(self, width: int, total: int, parents: Indices | None) -> Floats:
        """Additive attention bias (1, 1, width, total): zeros for a chain, from one buffer that is never filled."""
        size = width * total
        if parents is None:
            if size > len(self._zeros):
                self._zeros = np.zeros(2 * size, dtype=np.float32)
            return self._zeros[:size].reshape(1, 1, width, total)
        bias = np.zeros((1, 1, width, total), dtype=np.float32)
        bias[0, 0, :, total - width :][~ancestors(parents)] = _HIDDEN_BIAS
        return bias

    def _biases(self, positions: Indices, total: int, parents: Indices | None) -> dict[str, Array]:
        """Inputs whose shape is new in every step: what all layers add to their scores, and those with a window."""
        width, window = len(positions), self._model.window
        full = self._bias(width, total, parents)
        if window is None:
            return {"bias": full}
        seen = self._rows.with_new(positions)
        if int(positions.max()) - int(seen.min()) < window:
            return {"bias": full, "sliding_bias": full}
        near = np.where(positions[:, None] - seen < window, full[0, 0], np.float32(_HIDDEN_BIAS))
        return {"bias": full, "sliding_bias": near[None, None]}

    def _run(
        self, step: BoundStep, biases: dict[str, Array], observe: Observations
    ) -> dict[str, npt.NDArray[np.float32]]:
        if not observe:
            binding = self._binding(step)
            for name, array in biases.items():
                binding.bind_cpu_input(name, array)
            self._execute(self._model.runner(False), binding)
            return {}
        runner = self._model.runner("queries" in observe)
        binding = self._bind(runner, step)
        for name, array in biases.items():
            binding.bind_cpu_input(name, array)
        names = ["hidden"] if "hidden" in observe else []
        names += [f"query_{i}" for i in range(self.info.n_layers)] if "queries" in observe else []
        for name in names:
            binding.bind_output(name)
        self._execute(runner, binding)
        arrays = [x.numpy() for x in binding.get_outputs()[-len(names) :]]  # in the order of binding, so ours are last
        observed = dict(zip(names, arrays, strict=True))
        found = {"hidden": observed.pop("hidden")} if "hidden" in observed else {}
        if observed:
            found["queries"] = np.concatenate(list(observed.values()))
        return found

    def _binding(self, step: BoundStep) -> Any:
        if step.key not in self._bindings:
            self._bindings[step.key] = self._bind(self._model.runner(False), step)
        return self._bindings[step.key]

    def _bind(self, runner: Any, step: BoundStep) -> Any:
        binding = runner.io_binding()
        for name, value in step.inputs:
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("logits", step.output)
        for i, (value, names) in enumerate(zip(self._values, self._model.outputs, strict=True)):
            binding.bind_ortvalue_input(f"past_{('key', 'value')[i % 2]}_{i // 2}", value)
            for name in names:
                binding.bind_ortvalue_output(name, value)
        return binding

    def _execute(self, runner: Any, binding: Any) -> None:
        try:
            with in_engine:
                runner.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
            raise EngineError(f"ONNX Runtime failed: {error}") from error
