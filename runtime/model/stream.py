"""An answer while it is being made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..cache.shadow import QualityReport
from ..errors import OptionError
from ..interfaces import Round
from ..text.thinking import Thoughts
from .result import Result, judged
from .turn import Holder, Reader, Turns


@dataclass(slots=True)
class Making:
    """What a stream and the code that makes its pieces tell each other. The code does not know the stream, so that a
    stream that is dropped is gone at once."""

    rounds: list[Round] = field(default_factory=list)
    result: Result | None = None
    has_turn: bool = False  # False once the pieces are asked for: it was given up before the turn came
    ended: bool = False  # is to end before the next step
    thoughts: Thoughts | None = None


class Stream(Holder):
    """Pieces of text as they are decided; `result` holds everything once the iteration has ended.

    It has the model from its first piece to its last. An unfinished one is ended, as if it was cancelled, by close(),
    by the next request of the thread that reads it, and where that thread ends. `result` says "cancelled" then, and
    what was still to be handed out of its text is all that it yields. Where the model is closed before the answer is
    complete, that ends with an OptionError. Several threads may read one in turn; others' requests wait until it is
    read to its end, closed or dropped. A pool may read one with any of its threads: before all of them ask the model
    for something else, so that none is left to read it, close it.
    """

    def __init__(
        self,
        turns: Turns,
        pieces: Callable[[Making], Iterator[str]],
        *,
        trial: Callable[[], QualityReport | None] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.when_read: Callable[[Result], None] | None = None  # told of the result once all of it was read
        self._making = Making()
        self._pieces = pieces(self._making)
        self._turns, self._trial, self._cancelled = turns, trial, cancelled
        self._reading = threading.Lock()
        self._begun = self._closing = False
        self._left: list[str] = []  # pieces that came when it was ended

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece. Raises what Turns.take() and the engine raise; the model stays usable.

        Raises OptionError where the model was closed before the answer was complete.
        """
        self._check_outside()
        with self._reading:
            if self._left:
                return self._left.pop(0)
            self._note_reader()
            self.running_in = threading.get_ident()
            try:
                self._begin()
                return next(self._pieces)
            except StopIteration:
                self._finish()
            except BaseException:
                self._turns.give_back(self)
                raise
            finally:
                self.running_in = None
        if self._closing and (self.result is None or self.result.finish_reason == "cancelled"):
            raise OptionError("this model was closed before the answer was complete; load it again.")
        raise StopIteration

    @property
    def rounds(self) -> list[Round]:
        """The rounds so far; grows while streaming."""
        return self._making.rounds

    @property
    def result(self) -> Result | None:
        """The answer, once the iteration has ended; None before, and where it was closed before it began."""
        return self._making.result

    @property
    def thinking(self) -> str | None:
        """Result.thinking so far. While the model thinks, pieces are empty."""
        return None if self._making.thoughts is None else self._making.thoughts.thought

    @property
    def self_acceptance(self) -> float | None:
        """Stats.self_acceptance of the answer so far."""
        n_judged, n_accepted = judged(self.rounds, "self")
        return n_accepted / n_judged if n_judged else None

    @property
    def trial(self) -> QualityReport | None:
        """Stats.trial as it stands now."""
        return self._trial() if self.result is None else self.result.stats.trial

    def close(self) -> None:
        """Stop generating, after the step that another thread may be running. The model stays usable."""
        self.end()
        self._left.clear()

    def end(self, *, closing: bool = False) -> None:
        self.when_read = None
        self._making.ended = True
        self._closing = closing and not self._cancelled()
        if self.running_in == threading.get_ident():  # called by what the step itself calls: the step is its last
            return
        with self._reading:
            try:
                if self._begun:
                    self._left += self._pieces
            finally:
                self._pieces = iter(())
                self._turns.give_back(self)

    @property
    def gives_up(self) -> bool:
        return self._making.ended or self._cancelled()

    def _begin(self) -> None:
        if not self._begun and not self._making.ended:
            self._making.has_turn = self._turns.take(self)
            self._begun = True

    def _finish(self) -> None:
        self._turns.give_back(self)
        told, self.when_read = self.when_read, None
        if told is not None and self.result is not None:
            told(self.result)

    def _note_reader(self) -> None:
        if not self._begun:
            self.reader = self.maker if self.maker.is_here else Reader.here()
        elif self.reader is not None and not self.reader.is_here:
            self.reader = None

    def _check_outside(self) -> None:
        if self.running_in == threading.get_ident():
            raise OptionError(
                "this answer is in the middle of a step: what the step calls cannot ask for its next piece."
            )
