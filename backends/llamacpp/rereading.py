"""Models that sum their text up in a state, which cannot be taken apart: what is to be forgotten is read again.

llama.cpp keeps the state behind the last tokens of a step, for some architectures, so that a step's end can be taken
back once (ModelInfo.rewinds). Anything else begins anew with the tokens that stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...runtime.errors import AbilityError, EngineError, OptionError
from ...runtime.interfaces import Indices, Tokens
from ..common.kv_rows import room_for
from ..common.saved_cache import Layout, pack, unpack
from .context import Context
from .loaded_model import LlamaCppModel
from .session import LlamaCppSession

_SAVED: Sequence[Layout] = ((np.uint8, (None,)), (np.int64, (None,)))  # llama.cpp's state, and the tokens


class RereadingSession(LlamaCppSession):
    """One cache and its tokens."""

    def __init__(self, model: LlamaCppModel, max_context: int, watching: bool = False) -> None:
        self._tokens: Tokens = np.empty(0, dtype=np.int64)  # of the entries, and perhaps of some that are forgotten
        super().__init__(model, max_context, watching)

    def keep(self, entries: Indices) -> None:
        if len(self._rows.kept(entries)) < self._rows.n:
            self._refuse_parts()

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> RereadingSession:
        self._rows.check_settled()
        self._model.check_open()
        if entries is not None and len(self._rows.kept(entries)) < self._rows.n:
            self._refuse_parts()
        other = RereadingSession(self._model, room_for(self._rows.n, max_context or self.max_context), self._watching)
        other._hold(self.positions, self._state(), self._tokens[: self._rows.n].copy())
        return other

    def save(self) -> bytes:
        """With the tokens, so that they can be read again."""
        self._rows.check_settled()
        state = np.frombuffer(self._state(), dtype=np.uint8)
        return pack(self.info, self.positions, [state, self._tokens[: self._rows.n]])

    def restore(self, state: bytes) -> None:
        self._rows.check_open()
        self._model.check_open()
        positions, (data, tokens) = unpack(self.info, state, self.max_context, lambda n: _SAVED)
        known = tokens.astype(np.int64)
        if len(known) != len(positions) or (known < 0).any() or (known >= self.info.vocab_size).any():
            raise OptionError("this saved cache is damaged; save it again.")
        try:
            self._hold(positions, bytearray(data.tobytes()), known)
        except EngineError as error:
            raise OptionError(f"this saved cache is damaged; save it again ({error})") from error

    def _check_step(self, parents: Indices | None) -> None:
        if parents is not None:
            raise AbilityError(
                f"the llamacpp engine cannot verify trees with a {self.info.architecture} model: it sums its "
                "text up in one state. Use a proposer that drafts chains."
            )

    def _appended(self, tokens: Tokens) -> None:
        n = self._rows.n
        if n > len(self._tokens):
            grown = np.empty(max(2 * len(self._tokens), n), dtype=np.int64)
            grown[: n - len(tokens)] = self._tokens[: n - len(tokens)]
            self._tokens = grown
        self._tokens[n - len(tokens) : n] = tokens

    def _hold(self, positions: Indices, state: bytearray, tokens: Tokens) -> None:
        self._fill(positions, state)
        self._tokens = tokens

    def _forget(self, end: int) -> None:
        context = self._open()
        if not context.take_back(end):
            self._read_again(context, end)

    def _move(self, source: Context, target: Context) -> None:
        if "fork" in self.abilities:
            super()._move(source, target)
        else:
            self._read_again(target, self._rows.n)

    def _read_again(self, context: Context, end: int) -> None:
        context.clear()
        if end:
            self._chain(context, self._tokens[:end], np.arange(end), 0, frozenset())

    def _refuse_parts(self) -> None:
        raise AbilityError(
            f"the llamacpp engine cannot evict from the cache of a model of the architecture {self.info.architecture}: "
            "it sums its text up in one state. Leave the cache policy out."
        )
