"""An answer while it is being made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .interfaces import Round
from .result import Result


class Stream:
    """Pieces of text as they are decided; `result` holds everything once the iteration has ended."""

    def __init__(self, pieces: Callable[[Stream], Iterator[str]]) -> None:
        self.result: Result | None = None
        self.rounds: list[Round] = []  # grows while streaming
        self._pieces = pieces(self)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Stop generating. The model stays usable."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
