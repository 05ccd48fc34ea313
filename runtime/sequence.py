"""A session and the tokens its cache covers: prefill, draft catch-up and reuse between turns are one mechanism."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import ContextFullError
from .interfaces import Indices, Session, Step, Tokens
from .rows import ANY_WIDTH, RowRule

PREFILL_CHUNK = 256  # rows of a prefill step: the bound on how long a cancel waits


class Cancelled(Exception):  # noqa: N818 - a signal between our own frames, never seen by a caller
    """Raised between two prefill chunks."""


class CachedSequence:
    """Keeps `tokens`, what the session's cache covers, equal to what the session really holds."""

    def __init__(self, session: Session, rows: RowRule = ANY_WIDTH) -> None:
        self.session = session
        self.rows = rows
        self._tokens: Tokens = np.empty(256, dtype=np.int64)
        self._n = len(session.positions)
        if self._n:
            session.truncate(0)
            self._n = 0

    @property
    def tokens(self) -> Tokens:
        """The covered tokens, (n,); a view."""
        return self._tokens[: self._n]

    def common_prefix(self, context: Tokens) -> int:
        """How many leading tokens of the context the cache covers already."""
        n = min(self._n, len(context))
        differ = np.flatnonzero(self._tokens[:n] != context[:n])
        return int(differ[0]) if len(differ) else n

    def truncate(self, n_tokens: int) -> None:
        """Forget everything behind the first n_tokens."""
        if n_tokens < self._n:
            self.session.truncate(n_tokens)
            self._n = n_tokens

    def forward(self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None) -> Step:
        """Append tokens; after a tree call accept() before anything else."""
        step = self.session.forward(tokens, n_logits=n_logits, parents=parents)
        self._append(tokens)
        return step

    def accept(self, rows: Indices, n_rows: int) -> None:
        """After a tree of n_rows rows: keep these rows only."""
        base = self._n - n_rows
        self.session.accept(rows)
        self._tokens[base : base + len(rows)] = self._tokens[base + rows]
        self._n = base + len(rows)

    def cover(
        self,
        context: Tokens,
        *,
        cancelled: Callable[[], bool] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Make the cache cover exactly the context and return how many leading tokens were there already.

        Runs the rest in chunks of allowed widths (a lone last row is padded and the padding forgotten).
        progress: called with (tokens done, tokens in all). Raises ContextFullError before anything changes, and
        Cancelled between chunks, with what was run so far kept.
        """
        if len(context) > self.session.max_context:
            raise ContextFullError(
                f"{len(context)} tokens do not fit into a session that holds {self.session.max_context}. "
                f"Open the model with max_context={len(context)} or more, or shorten the prompt."
            )
        reused = self.common_prefix(context)
        self.truncate(reused)
        while self._n < len(context):
            if cancelled is not None and cancelled():
                raise Cancelled
            self._run_chunk(context)
            if progress is not None:
                progress(self._n, len(context))
        return reused

    def _run_chunk(self, context: Tokens) -> None:
        chunk = context[self._n : self._n + PREFILL_CHUNK]
        left = len(context) - self._n - len(chunk)
        if 0 < left < self.rows.minimum:  # leave no remainder too narrow for the class
            chunk = chunk[: len(chunk) - self.rows.minimum]
        width = len(chunk) if len(chunk) > self.rows.maximum else self.rows.fit(len(chunk))
        spare = width - len(chunk)
        if self._n + width > self.session.max_context:  # no room for padding: run the entries before once more
            self.truncate(self._n - spare)
            chunk, spare = context[self._n : self._n + width], 0
        end = self._n + len(chunk)
        self.forward(np.concatenate([chunk, np.full(spare, chunk[-1])]), n_logits=0)
        self.truncate(end)

    def _append(self, tokens: Tokens) -> None:
        n = self._n + len(tokens)
        if n > len(self._tokens):
            grown = np.empty(max(n, 2 * len(self._tokens)), dtype=np.int64)
            grown[: self._n] = self.tokens
            self._tokens = grown
        self._tokens[self._n : n] = tokens
        self._n = n
