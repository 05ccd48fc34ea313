"""A session and the tokens its cache covers: prefill, draft catch-up and reuse between turns are one mechanism."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..checks import room_hint
from ..errors import ContextFullError
from ..interfaces import UNOBSERVED, Distribution, Floats, Indices, Observations, Session, Step, Tokens
from ..profiling.row_classes import ANY_WIDTH, RowRule
from ..progress import Counted
from ..sampling.sampling import Sampling
from .compression import CompressedCache
from .mode import CacheMode, FullCache
from .policies.policy import CachePolicy
from .saved import SavedSequence
from .selection import SelectiveCache, selects

PREFILL_CHUNK = 256  # rows of a prefill step: the bound on how long a cancel waits


class Cancelled(Exception):  # noqa: N818 - a signal between our own frames, never seen by a caller
    """Raised between two prefill chunks."""


class CachedSequence:
    """Keeps `tokens`, what the session's cache covers, equal to what the session really holds.

    policy: compresses the cache whenever it is full, which covers more tokens than it holds entries then; or selects
        what steps see.
    covered: what the session covers already, though it may hold entries of only some, those that the policy has just
        selected; None: what it holds is forgotten.
    mode: over the session; what the policy asks for, by default.
    """

    def __init__(
        self,
        session: Session,
        rows: RowRule = ANY_WIDTH,
        policy: CachePolicy | None = None,
        covered: Tokens | None = None,
        *,
        mode: CacheMode | None = None,
    ) -> None:
        n_covered = 0 if covered is None else len(covered)
        n_evicted = 0 if covered is None else n_covered - len(session.positions)
        self.mode = mode or _mode_for(policy, session, rows, n_covered, n_evicted)
        self.rows = rows
        self._tokens: Tokens = np.empty(256, dtype=np.int64)
        self._source: Tokens | Floats | None = None  # what the session has read
        self._n = 0
        self.shift = 0  # how far the session's positions are behind the places of the tokens
        if covered is not None:
            self._append(covered)
            self._find_shift()
        elif len(session.positions):
            session.truncate(0)

    @property
    def session(self) -> Session:
        """What holds the entries; a mode may exchange it."""
        return self.mode.session

    @property
    def tokens(self) -> Tokens:
        """The covered tokens, (n,); a view."""
        return self._tokens[: self._n]

    def common_prefix(self, context: Tokens) -> int:
        """How many leading tokens of the context the cache covers already."""
        n = min(self._n, len(context))
        differ = np.flatnonzero(self._tokens[:n] != context[:n])
        return int(differ[0]) if len(differ) else n

    def reusable(self, context: Tokens) -> int:
        """How many leading tokens of the context need not be run again: the common prefix, or none where the cache
        was compressed behind its end, or cannot go back there."""
        n, far = self.common_prefix(context), self.session.info.rewinds
        return 0 if n < self.mode.fixed or (far is not None and self._n - n > far) else n

    @property
    def longest(self) -> int:
        """How many tokens the cache can cover."""
        return self.mode.longest

    @property
    def n_entries(self) -> int:
        """How many of the covered tokens the cache still holds."""
        return self._n - self.mode.n_evicted

    @property
    def n_seen(self) -> int:
        """How many of those a step sees."""
        return self.n_entries - self.mode.n_unseen

    @property
    def n_evicted(self) -> int:
        """How many of the covered tokens the cache holds no longer."""
        return self.mode.n_evicted

    @property
    def free(self) -> int:
        """How many rows still fit."""
        return self.session.max_context - self.n_entries

    @property
    def until_compression(self) -> int | None:
        """How many tokens can be committed before the cache is compressed; None: it never is."""
        due = self.mode.next(self._n)
        return None if due is None else due - self._n

    @property
    def next_compression(self) -> int | None:
        """How many tokens are covered when the cache is compressed next; None: it never is."""
        return self.mode.next(self._n)

    def has_read(self, source: Tokens | Floats) -> bool:
        """Whether this is the source that the session's steps see."""
        return self._source is not None and np.array_equal(self._source, source)

    def encode(self, source: Tokens | Floats) -> None:
        """Make the session's steps see this source; nothing happens where they do already."""
        if self.has_read(source):
            return
        self.mode.encode(source)
        self._source, self._n, self.shift = source.copy(), 0, 0

    def begin_answer(self, sampling: Sampling, n_prompt: int) -> None:
        """Answer tokens follow, chosen so; for modes that look at what is chosen."""
        self.mode.begin_answer(sampling, n_prompt)

    @property
    def compares(self) -> bool:
        """Whether committed() is to be told the distributions."""
        return self.mode.compares

    def committed(self, distributions: Sequence[Distribution]) -> None:
        """These distributions have chosen the tokens just committed; for modes that look at what is chosen."""
        self.mode.committed(distributions)

    def close(self) -> None:
        """Free the cache."""
        self.mode.close()

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.mode.nbytes

    def truncate(self, n_tokens: int) -> None:
        """Forget everything behind the first n_tokens, or all of it where some of those were evicted since."""
        if n_tokens >= self._n:
            return
        if n_tokens < self.mode.fixed:
            n_tokens = self.shift = 0
        before = self.session
        self.mode.truncate(n_tokens, max(n_tokens - self.shift, 0))
        if self.session is not before:
            self._source = None  # a session that was just opened has read nothing
        self._n = n_tokens

    def compress(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Change what is held or seen, if that is due. The last tokens are run again, where the policy wants to watch
        them."""
        if self._n == self.mode.next(self._n):
            self._change(self.tokens.copy(), cancelled)

    def forward(self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None) -> Step:
        """Append tokens; after a tree call accept() before anything else."""
        step = self.session.forward(tokens, n_logits=n_logits, parents=parents)
        self._append(tokens)
        return step

    def logits_after(self, tokens: Tokens) -> Floats:
        """Logits after each of these next tokens, (n, vocab_size), from one step of an allowed width: its spare rows
        are forgotten. They are the session's own and gone with its next step."""
        return self._padded(tokens, logits=True).logits[: len(tokens)]

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
        progress: Counted | None = None,
    ) -> int:
        """Make the cache cover exactly the context and return how many leading tokens were there already.

        Runs the rest in chunks of allowed widths (a lone last row is padded and the padding forgotten).
        progress: called with (tokens done, tokens in all). Raises ContextFullError before anything changes, and
        Cancelled between chunks, with what was run so far kept.
        """
        if len(context) > self.longest:
            raise ContextFullError(
                f"{len(context)} tokens do not fit into a session that holds {self.longest}. "
                + room_hint(len(context), self.session.info.context_length)
            )
        reused = self.reusable(context)
        self.truncate(reused)
        self.mode.begin_prompt()
        while self._n < len(context):
            if cancelled is not None and cancelled():
                raise Cancelled
            self._advance(context, cancelled)
            if progress is not None:
                progress(self._n, len(context))
        return reused

    def save(self) -> SavedSequence:
        """What restore() takes. Raises AbilityError where the session cannot save."""
        return self.mode.save(self.tokens.copy())

    def restore(self, saved: SavedSequence) -> None:
        """Cover what save() was called on, by a session over the same weights with the same policy.

        Raises OptionError and ContextFullError before anything changes.
        """
        self.mode.restore(saved)
        self._source = None  # whatever it is, it came with the entries
        self._n = 0
        self._append(saved.tokens)
        self._find_shift()

    def _advance(self, context: Tokens, cancelled: Callable[[], bool] | None) -> None:
        """One chunk; chunks end where a policy begins to watch."""
        stop = self.mode.stop(len(context))
        if self._n < stop:
            self._run_chunk(context[:stop])
        else:
            self._change(context[: self.mode.next(self._n)], cancelled)

    def _change(self, tokens: Tokens, cancelled: Callable[[], bool] | None) -> None:
        """Run the last of the tokens, at which a change is due, while the policy watches, and let it choose."""
        watch = self.mode.watch(len(tokens))
        self.truncate(watch.first)
        watched: list[Step] = []
        while self._n < len(tokens):
            if cancelled is not None and cancelled():
                raise Cancelled
            chunk = tokens[self._n : self._n + (watch.logit_rows or PREFILL_CHUNK)]
            watched.append(self._watched(chunk, logits=watch.logit_rows is not None, observe=watch.observe))
        to_read = self.mode.change(watched, tokens)
        if to_read is not None:
            self._restart(to_read, cancelled)
        self._find_shift()

    def _watched(self, chunk: Tokens, *, logits: bool, observe: Observations) -> Step:
        """What a step of these next tokens gave, to keep: without the padding."""
        return _head(self._padded(chunk, logits=logits, observe=observe), len(chunk), self.n_entries)

    def _padded(self, chunk: Tokens, *, logits: bool, observe: Observations = UNOBSERVED) -> Step:
        """A step of these next tokens, padded to an allowed width; the padding is forgotten again."""
        end, padded = self._n + len(chunk), self.rows.pad(chunk)
        step = self.session.forward(padded, n_logits=len(padded) if logits else 0, observe=observe)
        self._append(padded)
        self.truncate(end)
        return step

    def _restart(self, kept: Tokens, cancelled: Callable[[], bool] | None) -> None:
        """Read the kept tokens anew, at the first positions, as there are not enough behind them.

        When that happens follows from the number of covered tokens. Stopped on the way, nothing is covered any more.
        """
        try:
            CachedSequence(self.session, self.rows).cover(kept, cancelled=cancelled)
        except BaseException:
            self.truncate(0)
            raise

    def _find_shift(self) -> None:
        positions = self.session.positions
        self.shift = self._n - 1 - int(positions[-1]) if len(positions) else 0

    def _run_chunk(self, context: Tokens) -> None:
        chunk = context[self._n : self._n + PREFILL_CHUNK]
        left = len(context) - self._n - len(chunk)
        if 0 < left < self.rows.minimum:  # leave no remainder too narrow for the class
            chunk = chunk[: len(chunk) - self.rows.minimum]
        padded = self.rows.pad(chunk)
        if len(padded) > self.free:  # no room for padding: run the entries before once more
            self.truncate(self._n - (len(padded) - len(chunk)))
            padded = chunk = context[self._n : self._n + len(padded)]
        end = self._n + len(chunk)
        self.forward(padded, n_logits=0)
        self.truncate(end)

    def _append(self, tokens: Tokens) -> None:
        n = self._n + len(tokens)
        if n > len(self._tokens):
            grown = np.empty(max(n, 2 * len(self._tokens)), dtype=np.int64)
            grown[: self._n] = self.tokens
            self._tokens = grown
        self._tokens[self._n : n] = tokens
        self._n = n


def _mode_for(policy: CachePolicy | None, session: Session, rows: RowRule, n_covered: int, n_evicted: int) -> CacheMode:
    """What is done with the entries of a session that covers so many tokens and holds all but so many of them."""
    if policy is None:
        return FullCache(session, n_evicted)
    if selects(policy):
        return SelectiveCache(policy, session)
    return CompressedCache(policy, session, rows, (n_covered, n_evicted))


def _head(step: Step, n: int, n_entries: int) -> Step:
    """What the first n rows gave, to keep: the session's own arrays are overwritten by its next step."""
    queries = None if step.queries is None else step.queries[:, :, :n].copy()
    attention = None if step.attention is None else step.attention[:, :, :n, :n_entries].copy()
    return Step(step.logits[:n].copy(), queries=queries, attention=attention)
