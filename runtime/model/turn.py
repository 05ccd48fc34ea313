"""Whose turn it is to use a model's caches: one answer at a time, and no wait that cannot end.

An answer that is streamed has the turn between two pieces, too, as the cache is in the middle of its text. Who asks
meanwhile waits, unless the one who reads that answer cannot read on: he is the one who asks, or his thread has ended.
Then the answer is ended.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import OptionError

_POLL_S = 0.1  # how often one who waits looks whether the reader that he waits for is gone


class Reader:
    """A thread, and the call that it is busy with: the calls that a pool's thread is given are readers of their own.

    asyncio.to_thread and its like run each call in a context of its own, so a context variable tells the calls apart.
    """

    def __init__(self) -> None:
        self.thread = threading.current_thread()

    @staticmethod
    def here() -> Reader:
        """Who runs this line."""
        found = _reader.get(None)
        if found is None or found.thread is not threading.current_thread():
            found = Reader()
            _reader.set(found)
        return found

    @property
    def is_here(self) -> bool:
        """Whether this reader waits for the line that asks. The tasks of an event loop all wait for it."""
        return self.thread is threading.current_thread() and (Reader.here() is self or in_event_loop())


_reader: ContextVar[Reader] = ContextVar("pilotfish_reader")


def in_event_loop() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Holder:
    """One who may have the turn. This one is an errand: the call that takes the turn gives it back."""

    def __init__(self) -> None:
        self.maker = Reader.here()
        self.reader: Reader | None = self.maker  # all that has read so far; None: several have
        self.running_in: int | None = None  # identifier of the thread that uses the caches at this moment

    @property
    def gives_up(self) -> bool:
        """Whether it wants the turn no more."""
        return False

    def end(self, *, closing: bool = False) -> None:
        """Give the turn back early; returns once that is done, or at once where an errand ends by itself.

        closing: because the model is closed, which whoever waits for the rest is told.
        """

    @property
    def is_abandoned(self) -> bool:
        """Whether its reader cannot read on before the line that asks returns, or never will.

        A stream that one thread made and another reads may be read by a pool, whose next thread may be any.
        """
        if self.running_in is not None or self.reader is None:
            return False
        return not self.reader.thread.is_alive() or (self.reader is self.maker and self.reader.is_here)


class Turns:
    """Hands out the turn.

    Holders are known by weak references: who drops a stream gives its turn back, by a callback that may run in any
    thread and at any line, those below included. So the lock can be taken twice by one thread, and what it guards is
    read once and changed at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: weakref.ref[Holder] | None = None
        self._last: Holder | None = None  # has the turn once it is handed out no more
        self._closing = self._parks = False

    def take(self, asker: Holder) -> bool:
        """Wait for the turn; False where the asker gave up before it came.

        Raises OptionError where the model is closed, and where the wait would have no end.
        """
        while True:
            with self._changed:
                self._check_open()
                if self._held_by() is None:
                    self._holder = weakref.ref(asker, self._dropped)
                    return True
                abandoned = self._abandoned()
                if abandoned is None:
                    if asker.gives_up:
                        return False
                    self._changed.wait(_POLL_S)
            if abandoned is not None:
                abandoned.end()  # without the lock: the answer's own code runs
                del abandoned  # who waits does not keep a stream from being dropped

    def give_back(self, holder: Holder) -> None:
        """The turn is free, if this one had it."""
        with self._changed:
            if self._held_by() is holder:
                self._holder = None
                self._changed.notify_all()

    @contextmanager
    def errand(self) -> Iterator[None]:
        """The turn for some lines. Raises what take() raises."""
        holder = Holder()
        holder.running_in = threading.get_ident()
        self.take(holder)
        try:
            yield
        finally:
            self.give_back(holder)

    def close(self, *, parks: bool = False) -> bool:
        """End the answer that has the turn, after the step that runs, and hand the turn out no more.

        parks: daemon threads that ask for it wait until the process ends, instead of being told. False where another
        call has done it. Raises OptionError in the middle of a step of this thread, before anything changes.
        """
        last = Holder()
        while True:
            with self._changed:
                if self._last is not None:
                    return False
                self._parks = self._parks or parks
                holder = self._held_by()
                if holder is None:
                    self._last, self._holder = last, weakref.ref(last)
                    return True
                _check_outside(holder)
                self._closing = True
                self._changed.notify_all()
            holder.end(closing=not parks)  # as the process ends, nobody can do anything about it
            del holder
            with self._changed:
                if self._held_by() is not None:  # an errand
                    self._changed.wait(_POLL_S)

    def _held_by(self) -> Holder | None:
        known = self._holder
        return None if known is None else known()

    def _abandoned(self) -> Holder | None:
        """The holder, if it is to be ended; None: it is to be waited for. Raises OptionError where that has no end."""
        holder = self._held_by()
        if holder is None:
            return None
        _check_outside(holder)
        if holder.is_abandoned:
            return holder
        if in_event_loop() and holder.reader is not holder.maker:
            raise OptionError(
                "another answer of this model is being read through other threads, and to wait for it here would stop "
                "the event loop that reads it. Ask through a thread, too: await asyncio.to_thread(model.generate, ...)."
            )
        return None

    def _dropped(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def check_open(self) -> None:
        """Raise OptionError once the turn is handed out no more."""
        with self._changed:
            self._check_open()

    def _check_open(self) -> None:
        if not self._closing and self._last is None:
            return
        while self._parks and threading.current_thread().daemon:
            self._changed.wait()
        raise OptionError("this model is closed; load it again.")


def _check_outside(holder: Holder) -> None:
    if holder.running_in == threading.get_ident():
        raise OptionError(
            "this model is in the middle of a step: a progress callback, a logits processor or a proposer can neither "
            "ask it for another answer nor close it. Do so after the step, or ask a second model over the same "
            "weights: model.sibling(policy=None)."
        )
