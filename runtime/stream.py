"""An answer while it is being made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .interfaces import Round
from .result import Result, judged
from .twin import TrialReport


class Stream:
    """Pieces of text as they are decided; `result` holds everything once the iteration has ended."""

    def __init__(
        self, pieces: Callable[[Stream], Iterator[str]], trial: Callable[[], TrialReport | None] = lambda: None
    ) -> None:
        self.result: Result | None = None
        self.rounds: list[Round] = []  # grows while streaming
        self._pieces = pieces(self)
        self._trial = trial

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def self_acceptance(self) -> float | None:
        """Stats.self_acceptance of the answer so far."""
        n_judged, n_accepted = judged(self.rounds, "self")
        return n_accepted / n_judged if n_judged else None

    @property
    def trial(self) -> TrialReport | None:
        """Stats.trial as it stands now."""
        return self._trial() if self.result is None else self.result.stats.trial

    def close(self) -> None:
        """Stop generating. The model stays usable."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()
