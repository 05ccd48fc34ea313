"""Opened weights as callers hold them: they make the sessions over a loaded model, and close it.

What a session needs of the weights is the engine's own loaded model, which sessions hold; it knows no session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ...runtime.errors import EngineError, OptionError
from ...runtime.interfaces import ModelInfo, Session


class LoadedModel(Protocol):
    """A model in the memory of an engine."""

    @property
    def info(self) -> ModelInfo: ...

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        ...

    def close(self) -> None: ...


Loaded = TypeVar("Loaded", bound=LoadedModel)
Held = TypeVar("Held")


class LoadedWeights(Generic[Loaded]):
    """A loaded model, shared by the sessions that are made over it."""

    def __init__(self, model: Loaded, new_session: Callable[[Loaded, int], Session]) -> None:
        """new_session: of the model and the most entries that the session may hold."""
        self.model, self._new_session = model, new_session

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def session(self, max_context: int | None = None) -> Session:
        """An empty cache. Raises EngineError after close(), OptionError for a size that the model does not have."""
        self.model.check_open()
        limit = self.info.context_length
        wanted = limit if max_context is None else max_context
        if not 1 <= wanted <= limit:
            raise OptionError(f"max_context is {wanted}, but this model was trained for 1..{limit} tokens.")
        return self._new_session(self.model, wanted)

    def close(self) -> None:
        self.model.close()


def still_open(held: Held | None) -> Held:
    """What a loaded model holds until it is closed. Raises EngineError once that is None."""
    if held is None:
        raise EngineError("these weights are closed; load the model again.")
    return held
