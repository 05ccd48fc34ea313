"""One cache over llama.cpp: a context that grows, rollback by position, trees as sequences."""

from __future__ import annotations

import numpy as np

from ...runtime.errors import AbilityError, EngineError, OptionError
from ...runtime.interfaces import UNOBSERVED, Ability, Floats, Indices, Observations, Step, Tokens
from ..common.decoder_only import DecoderOnly
from ..common.kv_rows import Rows, room_for
from ..common.saved_cache import pack, unpack
from .context import MAX_OUTPUTS, MAX_ROWS, Context, capacity_for
from .loaded_model import LlamaCppModel

FIRST = 512  # entries a cache begins with, at most
_WAY_OUT = {
    "attention": "Open the model with options={'flash_attention': 'off'} and a kv_dtype whose values are not "
    "quantized, or use the reference engine.",
    "hidden": "The onnx engine and the reference engine do.",
    "queries": "The onnx engine and the reference engine do.",
    "keys": "The onnx engine and the reference engine do.",
}


class LlamaCppSession(DecoderOnly):
    """A cache over a LlamaCppModel. llama.cpp allocates a context whole, so a full one is replaced by a larger one."""

    def __init__(self, model: LlamaCppModel, max_context: int, watching: bool = False) -> None:
        self._model = model
        self.info = model.info
        self.abilities: frozenset[Ability] = model.abilities
        self.max_context = max_context
        self._rows = Rows(max_context, self.info.context_length)
        self._watching = watching
        self._paths: list[list[int]] = []  # of the tree that waits: the sequences that each of its rows belongs to
        self._context: Context | None = self._make(min(FIRST, max_context), watching)

    @property
    def positions(self) -> Indices:
        return self._rows.positions

    @property
    def nbytes(self) -> int:
        return 0 if self._context is None else self._context.nbytes

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        self._check_step(parents)
        if not observe <= self.abilities:
            self._refuse(min(observe - self.abilities))
        positions = self._rows.plan(tokens, n_logits, parents, self.info.vocab_size)
        self._model.check_open()
        sequences = None if parents is None else self._sequences(parents, n_logits, observe)
        paired = len(tokens) == 1 and self._pairs()
        context = self._room(self._rows.n + len(tokens) + paired, "attention" in observe)
        try:
            if paired:
                step = self._pair(context, tokens, positions, n_logits, observe)
            elif sequences is None:
                step = self._chain(context, tokens, positions, n_logits, observe)
            else:
                context.branch(1 + max(max(members) for members in sequences))
                context.decode(tokens, positions, n_logits, sequences, "hidden" in observe)
                step = self._read(context, len(tokens), n_logits, observe, self._rows.n)
        except EngineError:
            self._forget(int(positions[0]))
            if sequences is not None:
                context.settle()
            raise
        self._rows.append(positions, parents)
        self._paths = sequences or []
        self._appended(tokens)
        return step

    def truncate(self, n_tokens: int) -> None:
        before = self._rows.n
        self._rows.truncate(n_tokens)
        if self._rows.n < before or self._paths:
            self._settle(0, n_tokens)

    def accept(self, rows: Indices) -> None:
        entries = self._rows.accepted(rows)
        base = self._rows.n - self._rows.last_width
        end = int(self.positions[entries[-1]]) + 1
        self._settle(self._paths[rows[-1]][0] if self._paths else 0, end)
        if len(rows) != rows[-1] + 1:  # rows between them are gone
            self._open().close_gaps(int(self.positions[base]))
        self._rows.keep(entries)

    def keep(self, entries: Indices) -> None:
        entries = self._rows.kept(entries)
        kept = self.positions[entries]
        gone = np.setdiff1d(self.positions, kept)
        if not len(gone):
            self._rows.keep(entries)
            return
        context = self._open()
        for run in np.split(gone, np.flatnonzero(np.diff(gone) > 1) + 1):
            context.remove(int(run[0]), int(run[-1]) + 1)
        if len(kept) and kept[-1] > gone[0]:
            context.close_gaps(int(gone[0]))
        self._rows.keep(entries)
        self._give_back()

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._rows.check_open()
        return self._refuse("keys")

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> LlamaCppSession:
        """Chosen entries take a whole copy first: llama.cpp writes and reads all of a sequence, and holes in a context
        cost as much as entries."""
        self._rows.check_settled()
        self._model.check_open()
        entries = None if entries is None else self._rows.kept(entries)
        n = self._rows.n if entries is None else len(entries)
        other = self._empty(room_for(n, max_context or self.max_context))
        if entries is None:
            other._fill(self.positions, self._state())
            return other
        whole = self.fork()
        whole.keep(entries)
        other._fill(whole.positions, whole._state())
        whole.close()
        return other

    def save(self) -> bytes:
        self._rows.check_settled()
        return pack(self.info, self.positions, [np.frombuffer(self._state(), dtype=np.uint8)])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        self._model.check_open()
        positions, (data,) = unpack(self.info, state, self.max_context)
        try:
            self._fill(positions, bytearray(data.tobytes()))
        except EngineError as error:
            raise OptionError(f"this saved cache is damaged; save it again ({error})") from error

    def close(self) -> None:
        self._rows.close()
        self._paths = []
        self._context = None  # freed, once nobody holds logits that lie in it

    def _refuse(self, what: str) -> tuple[Floats, Floats]:
        raise AbilityError(f"the llamacpp engine does not give out {what} here. {_WAY_OUT[what]}")

    def _open(self) -> Context:
        if self._context is None:
            raise EngineError("this session is closed; open another one.")
        return self._context

    def _empty(self, max_context: int) -> LlamaCppSession:
        """A session like this one, without entries."""
        return LlamaCppSession(self._model, max_context, self._watching)

    def _make(self, n_entries: int, watching: bool) -> Context:
        """Memory for so many entries, which has none yet."""
        return self._model.context(n_entries, watching)

    def _state(self) -> bytearray:
        return self._open().state() if self._rows.n else bytearray()

    def _fill(self, positions: Indices, state: bytearray) -> None:
        """Hold these entries instead; in a new context, so that what fails changes nothing."""
        context = self._make(max(min(FIRST, self.max_context), len(positions)), self._watching)
        if len(positions):
            context.load(state)
        self._context = context
        self._paths = []
        self._rows.replace(positions)

    def _room(self, n_entries: int, watch: bool) -> Context:
        """The context, after it has become large enough and able to show attention."""
        context = self._open()
        if n_entries <= context.capacity and (self._watching or not watch):
            return context
        grown = max(n_entries, min(2 * context.capacity, capacity_for(self.max_context)))
        wanted = grown if n_entries > context.capacity else context.capacity
        larger = self._make(wanted, self._watching or watch)
        self._move(context, larger)
        self._watching = self._watching or watch
        self._context = larger
        return larger

    def _give_back(self) -> None:
        """Go over to a smaller context, where the kept entries need only a quarter of this one: it was made whole."""
        context, n = self._open(), max(self._rows.n, min(FIRST, self.max_context))
        if 4 * capacity_for(n) > context.capacity:
            return
        smaller = self._make(n, self._watching)
        self._move(context, smaller)
        self._context = smaller

    def _settle(self, sequence: int, end: int) -> None:
        """One sequence is the text, and nothing stands at positions >= end."""
        self._forget(end)
        if self._paths:
            self._open().settle(sequence)
            self._paths = []

    def _forget(self, end: int) -> None:
        """Nothing stands at positions >= end."""
        self._open().remove(end)

    def _move(self, source: Context, target: Context) -> None:
        """What is held in one context is held in another one, too."""
        if self._rows.n:
            target.load(source.state())

    def _check_step(self, parents: Indices | None) -> None:
        """Raise for a step that this kind of session cannot take now."""

    def _appended(self, tokens: Tokens) -> None:
        """Told of tokens that a step has just appended."""

    def _sequences(self, parents: Indices, n_logits: int, observe: Observations) -> list[list[int]]:
        """For each row the leaves below it, or it itself, numbered. Raises OptionError for trees that are too large."""
        n = len(parents)
        inner = {int(parent) for parent in parents[1:]}
        leaves = [row for row in range(n) if row not in inner]
        outputs, most = n if "hidden" in observe else n_logits, self._open().max_leaves
        if n > MAX_ROWS or len(leaves) > most or outputs > MAX_OUTPUTS:
            raise OptionError(
                f"a tree of {n} rows with {len(leaves)} leaves, {outputs} of them read, is too large for the llamacpp "
                f"engine: {MAX_ROWS}, {most} and {MAX_OUTPUTS} are the most. Draft fewer tokens."
            )
        below: list[list[int]] = [[] for _ in range(n)]
        for number, leaf in enumerate(leaves):
            row = leaf
            below[row].append(number)
            while row:
                row = int(parents[row])
                below[row].append(number)
        return below

    def _chain(
        self, context: Context, tokens: Tokens, positions: Indices, n_logits: int, observe: Observations
    ) -> Step:
        n, hidden, most = len(tokens), "hidden" in observe, self._model.max_rows
        if n <= most and (n if hidden else n_logits) <= MAX_OUTPUTS:
            context.decode(tokens, positions, n_logits, None, hidden)
            return self._read(context, n, n_logits, observe, self._rows.n)
        steps: list[Step] = []
        start = 0
        while start < n:
            silent = 0 if hidden else max(n - n_logits - start, 0)  # rows ahead of which nothing is read
            end = min(start + most, start + silent + MAX_OUTPUTS, n)
            end -= n - end == 1  # a row left over would be a step of one row, which may have bits of its own
            read = min(end - start, max(end - (n - n_logits), 0))
            context.decode(tokens[start:end], positions[start:end], read, None, hidden)
            step = self._read(context, end - start, read, observe, self._rows.n + start)
            steps.append(Step(step.logits.copy(), step.hidden, None, step.attention))
            start = end
        return _joined(steps, self._rows.n + n)

    def _pairs(self) -> bool:
        beyond = self._model.pairs_beyond
        return beyond is not None and self._rows.n >= beyond

    def _pair(self, context: Context, tokens: Tokens, positions: Indices, n_logits: int, observe: Observations) -> Step:
        """A single row, computed beside a copy of itself, which is forgotten: see LlamaCppModel.pairs_beyond."""
        twice = np.concatenate([positions, positions + 1])
        context.decode(np.repeat(tokens, 2), twice, 2 * n_logits, None, "hidden" in observe)
        context.remove(int(twice[1]))
        step = self._read(context, 2, 2 * n_logits, observe, self._rows.n)
        return Step(step.logits[:n_logits], None if step.hidden is None else step.hidden[:1])

    def _read(self, context: Context, n: int, n_logits: int, observe: Observations, n_before: int) -> Step:
        return Step(
            context.logits(n, n_logits),
            hidden=context.hidden(n) if "hidden" in observe else None,
            attention=context.watcher.attention(n_before + n) if context.watcher and "attention" in observe else None,
        )


def _joined(steps: list[Step], n_entries: int) -> Step:
    """One step from consecutive ones; what earlier rows could not see has no attention."""
    shown = [step.attention for step in steps if step.attention is not None]
    hidden = [step.hidden for step in steps if step.hidden is not None]
    wide = [np.pad(x, [(0, 0), (0, 0), (0, 0), (0, n_entries - x.shape[-1])]) for x in shown]
    return Step(
        np.concatenate([step.logits for step in steps]),
        hidden=np.concatenate(hidden) if hidden else None,
        attention=np.concatenate(wide, axis=2) if wide else None,
    )
