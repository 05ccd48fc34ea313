"""What must not be in the middle of anything when the interpreter is taken down.

Threads that nobody waits for (daemon threads) run on while the process ends, and are stopped wherever they next ask for
the interpreter: on the way out of an engine, whose own code is then unwound, which ends the process with signal 6.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable

_POLL_S = 0.01
_ends: list[Callable[[], Callable[[], None]]] = []
_leaving = threading.Event()


def before_leaving(end: Callable[[], Callable[[], None]]) -> None:
    """Have this called when the process ends, before any finalizer: it ends what runs, and what it returns frees it."""
    _ends.append(end)


class _InEngine:
    """Around every long call into an engine: the process does not end in the middle of one, and none begins then.

    The set is changed without a lock, as each thread adds and removes itself alone.
    """

    def __init__(self) -> None:
        self._threads: set[int] = set()

    def __enter__(self) -> None:
        self._threads.add(threading.get_ident())
        if _leaving.is_set() and threading.current_thread().daemon:
            self._threads.discard(threading.get_ident())
            threading.Event().wait()  # until the process is gone

    def __exit__(self, *_: object) -> None:
        self._threads.discard(threading.get_ident())

    def wait(self) -> None:
        """Return once no other thread is in an engine."""
        while self._threads - {threading.get_ident()}:
            time.sleep(_POLL_S)


in_engine = _InEngine()
_process = os.getpid()


def _leave() -> None:
    if os.getpid() != _process:  # a fork has none of the other threads
        return
    frees = [end() for end in _ends]
    _leaving.set()
    in_engine.wait()
    for free in frees:
        free()


class _Nothing:
    pass


weakref.finalize(_Nothing(), int)  # finalizers are run at exit from their first use on: what follows comes before them
atexit.register(_leave)
