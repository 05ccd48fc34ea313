"""Every contestant's answers to every prompt, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from ....runtime.progress import Progress
from .contestants import Contestant
from .contract import Answer, Question, Setup
from .energy import EnergyMeter
from .process import PeerFailedError, PeerMissingError, Worker, environment

_PAUSE_S = 0.05  # for the threads of the one before to go to sleep
_WARM_UP = 8  # tokens: the first steps of a process are slower


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to one prompt."""

    answer: Answer
    joules: float | None


@dataclass(slots=True)
class Row:
    """A contestant, how it fares, and its answers by prompt. state: "ran", or why there are no figures."""

    contestant: Contestant
    state: str = "ran"
    version: str = ""
    load_s: float = 0.0
    peak_bytes: int | None = None
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    worker: Worker | None = None

    @property
    def ran(self) -> bool:
        return self.state == "ran"

    def ask(self, message: dict[str, object]) -> dict[str, object] | None:
        """The reply; None where the contestant is out, now or before."""
        if not self.ran or self.worker is None:
            return None
        try:
            reply = self.worker.ask(message)
        except PeerMissingError as error:
            self._out(f"not installed: {error}")
        except PeerFailedError as error:
            self._out(f"failed: {error}")
        else:
            peak = reply.get("peak_bytes")
            self.peak_bytes = peak if isinstance(peak, int) else self.peak_bytes
            return reply
        return None

    def _out(self, why: str) -> None:
        self.state = why
        self.samples.clear()
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()


def turns(n_rows: int, n_prompts: int, repeats: int) -> Iterator[tuple[int, int]]:
    """(prompt, row): all rows answer a prompt before the next one is asked; every other pass in opposite order."""
    for repeat in range(repeats):
        for prompt in range(n_prompts):
            for row in range(n_rows) if repeat % 2 == 0 else reversed(range(n_rows)):
                yield prompt, row


def measure(
    contestants: Sequence[Contestant],
    questions: Sequence[Question],
    setup: Callable[[Contestant], Setup],
    *,
    repeats: int,
    limit_s: float,
    meter: EnergyMeter | None,
    progress: Progress,
) -> list[Row]:
    """A row for each contestant. One that is missing, fails, dies or takes longer than limit_s for one answer is out,
    and the others go on."""
    rows = [Row(contestant) for contestant in contestants]
    try:
        for i, row in enumerate(rows):
            progress("opening peers", i / len(rows))
            _open(row, setup(row.contestant), questions[0], limit_s)
        order = list(turns(len(rows), len(questions), repeats))
        for done, (prompt, i) in enumerate(order):
            progress("measuring", done / len(order))
            _sample(rows[i], prompt, questions[prompt], meter)
        progress("measuring", 1.0)
    finally:
        for row in rows:
            row.close()
    return rows


def _open(row: Row, setup: Setup, first: Question, limit_s: float) -> None:
    own = row.contestant.python is None
    try:
        row.worker = Worker(row.contestant.command, limit_s, environment(setup.threads, own))
    except PeerFailedError as error:
        row.state = f"failed: {error}"
        return
    reply = row.ask({"open": asdict(setup)})
    if reply is not None:
        row.version, row.load_s = str(reply["opened"]), float(str(reply["seconds"]))
        row.ask({"ask": {**asdict(first), "n_tokens": min(_WARM_UP, first.n_tokens)}})


def _sample(row: Row, prompt: int, question: Question, meter: EnergyMeter | None) -> None:
    if not row.ran:
        return
    time.sleep(_PAUSE_S)
    if meter is not None:
        meter.begin()
    reply = row.ask({"ask": asdict(question)})
    if reply is None:
        return
    told = reply["answer"]
    assert isinstance(told, dict)
    answer = Answer(**{**told, "tokens": tuple(told["tokens"])})
    row.samples.setdefault(prompt, []).append(Sample(answer, None if meter is None else meter.joules()))
