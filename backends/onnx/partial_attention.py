"""Steps over a part of a cache on ONNX Runtime, whose attention kernel knows no gaps: over a copy of what is seen."""

from __future__ import annotations

from ...runtime.interfaces import UNOBSERVED, Floats, Indices, Observations, Step, Tokens
from .loaded_model import OrtModel
from .session import OrtSession

_ROOM = 64  # for what is added until the next choice


class OrtAttendingSession(OrtSession):
    """A cache with, while a part of it is attended to, a smaller one over that part, which the steps run on.

    Entries that steps add come from there into the whole cache when something wants to read them: `_n_held` of the
    entries are there, all others in the part, as its last ones.
    """

    def __init__(self, model: OrtModel, max_context: int) -> None:
        super().__init__(model, max_context)
        self.abilities |= {"attend"}
        self._part: OrtSession | None = None
        self._chosen_of = 0  # entries that there were when it was chosen
        self._n_held = 0

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._part is None else self._part.nbytes)

    def attend(self, entries: Indices | None) -> None:
        self._rows.check_settled()
        if entries is not None:
            self._rows.unseen(entries)  # raises for what is no choice
        self._catch_up()
        if entries is None:
            self._drop_part()
            return
        if self._part is None:
            self._part = OrtSession(self._model, self.max_context)
        if len(entries) + _ROOM > self._part._capacity:
            self._part._grow(min(len(entries) + _ROOM, self.max_context))
        self._part._fill(self._rows.positions_of(entries), self._selected(entries))
        self._chosen_of = self._n_held = self._rows.n

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        if self._part is None:
            return super().forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        positions = self._plan(tokens, n_logits, parents)
        step = self._part.forward(tokens, n_logits=n_logits, parents=parents, observe=observe)
        self._rows.append(positions, parents)
        return step

    def truncate(self, n_tokens: int) -> None:
        super().truncate(n_tokens)
        if self._part is None:
            return
        if self._rows.n < self._chosen_of:
            self._drop_part()
        else:
            self._part.truncate(n_tokens)
            self._n_held = min(self._n_held, self._rows.n)

    def accept(self, rows: Indices) -> None:
        if self._part is None:
            super().accept(rows)
            return
        entries = self._rows.accepted(rows)
        self._n_held = min(self._n_held, self._rows.n - self._rows.last_width)
        self._part.accept(rows)
        self._rows.keep(entries)

    def keep(self, entries: Indices) -> None:
        entries = self._kept(entries)
        self._catch_up()
        self._drop_part()
        super().keep(entries)

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        self._catch_up()
        return super().keys_values(layer)

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> OrtSession:
        """Of the whole cache, and it sees the whole."""
        self._catch_up()
        return super().fork(entries, max_context)

    def save(self) -> bytes:
        self._catch_up()
        return super().save()

    def restore(self, state: bytes) -> None:
        super().restore(state)
        self._drop_part()

    def close(self) -> None:
        super().close()
        self._drop_part()

    def _empty(self, max_context: int) -> OrtAttendingSession:
        return OrtAttendingSession(self._model, max_context)

    def _catch_up(self) -> None:
        """Hold the entries in the whole cache that only the part has."""
        n = self._rows.n
        if self._part is None or self._n_held == n:
            return
        if n > self._capacity:
            self._grow(min(max(n, 2 * self._capacity), self.max_context))
        for whole, part in zip(self._cache, self._part._entries(), strict=True):
            whole[0, :, self._n_held : n] = part[:, self._n_held - n :]
        self._n_held = n

    def _drop_part(self) -> None:
        if self._part is not None:
            self._part.close()
        self._part = None
