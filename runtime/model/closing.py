"""Frees what a model holds, once: where it is closed, or else as the process ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

from ..leaving import before_leaving
from .turn import Turns

_open: weakref.WeakSet[Closing] = weakref.WeakSet()


class Closable(Protocol):
    """Caches, or weights."""

    def close(self) -> None: ...


class Closing:
    """What is freed of one model, in this order, once nobody has its turn any more. It lives as long as the model."""

    def __init__(self, turns: Turns, *held: Closable) -> None:
        self._turns, self._held = turns, held
        _open.add(self)

    def close(self) -> None:
        """Free all of it after the step that runs; a second call does nothing. Raises what Turns.close() raises."""
        if self._turns.close():
            _open.discard(self)
            self.free()

    def end(self) -> bool:
        """End what runs, since the process does. False where it was closed before."""
        return self._turns.close(parks=True)

    def free(self) -> None:
        for one in self._held:
            one.close()


def _end_all() -> Callable[[], None]:
    """When the process ends: what threads ask of a model ends with the step that runs."""
    ended = [closing for closing in list(_open) if closing.end()]

    def free() -> None:
        for closing in ended:
            closing.free()

    return free


before_leaving(_end_all)
