"""Long work says how far it is: bars on a terminal, and where there is none a line now and then."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import pytest
from command_line import Run, own_cache, pilotfish, tiny

from pilotfish.apps import terminal
from pilotfish.apps.terminal import LoadProgress

__all__ = ["own_cache", "pilotfish", "tiny"]  # fixtures
LINE = re.compile(r"(.+): (\d+)% after (\d+) s")


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(terminal, "_now", made)
    yield made


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds pass whenever the time is asked for."""
    ticks = count(0.0, 4.0)
    monkeypatch.setattr(terminal, "_now", lambda: next(ticks))


def test_a_pipe_gets_a_line_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress() as report:
        for second in range(13):
            report("reading", second / 12)
            clock.now += 1
        report("writing", 0.0)
    assert capsys.readouterr().err.splitlines() == ["reading: 42% after 5 s", "reading: 83% after 10 s"]


def test_a_step_that_says_nothing_for_long_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine that is tried says that it begins, and nothing until it is done."""
    told = threading.Event()
    monkeypatch.setattr(terminal, "_LINE_S", 0.01)
    with LoadProgress() as report:
        tell = report.__self__._tell  # type: ignore[attr-defined]
        monkeypatch.setattr(report.__self__, "_tell", lambda: (tell(), told.set()))  # type: ignore[attr-defined]
        report("trying onnx on cpu", 0.0)
        told.clear()
        assert told.wait(10)
        assert told.clear() is None and told.wait(10)
    assert "trying onnx on cpu: 0% after" in capsys.readouterr().err


def test_what_takes_long_is_told_more_seldom(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress() as report:
        for second in range(10_000):
            report("reading", second / 10_000)
            clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    times = [int(found[3]) for line in lines if (found := LINE.fullmatch(line))]
    assert len(times) == len(lines) and 40 < len(lines) < 80
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == sorted(gaps) and gaps[0] == 5 and times[-1] > 9000


def test_what_is_short_is_not_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress() as report:
        for step in ("one", "two", "three"):
            report(step, 0.0)
            clock.now += 1
            report(step, 1.0)
    assert capsys.readouterr().err == ""


def test_steps_that_stay_are_each_told_with_their_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress(keep=True) as report:
        for step, seconds in (("one", 1), ("two", 12), ("one", 2)):
            for done in range(seconds):
                report(step, done / seconds)
                clock.now += 1
    told = ["one: 1.0 s", "two: 33% after 4 s", "two: 75% after 9 s", "two: 12.0 s", "one: 2.0 s"]
    assert capsys.readouterr().err.splitlines() == told


def test_a_terminal_gets_a_bar_once_it_takes_long(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for seconds, shown in ((0.5, False), (3.0, True)):
        with LoadProgress(patience_s=1.0) as report:
            for done in range(4):
                report("reading the prompt", done / 4)
                clock.now += seconds / 3
        assert ("reading the prompt" in capsys.readouterr().err) == shown


def test_both_phases_of_a_long_document_are_told(tiny: Path, tmp_path: Path, pilotfish: Run, hurried: None) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {i} is about the cat and the dog.\n" for i in range(300)), "utf-8")
    asked = ("run", tiny, "What does the cat say?", "-n", 8, "--document", book, "--max-context", 2048)
    for more in ((), ("--json",)):
        outcome = pilotfish(*asked, *more)
        assert outcome.code == 0 and "reading book.txt: " in outcome.err and "reading the prompt: " in outcome.err
        assert not LINE.search(outcome.out)


def test_every_long_command_tells_how_far_it_is(tiny: Path, tmp_path: Path, pilotfish: Run, hurried: None) -> None:
    long = "the cat and the dog " * 60
    talk = tmp_path / "talk"
    bench_run = ("bench", "run", tiny, "--sets", "code", "--per-set", 1, "--tokens", 2, "--repeats", 1)
    bench_curve = ("bench", "curve", tiny, "--engines", "onnx", "--context", 8, "--repeats", 1)
    few = ("--sets", "code", "--per-set", 1, "--tokens", 2, "--repeats", 1)
    bench_peers = ("bench", "peers", tiny, "--peers", "pilotfish", "--engine", "onnx", *few)
    bench_long = ("bench", "long", tiny, "--max-context", 640, "--segment", 64, "--times", 2, "--depths", 2)
    for outcome, said in (
        (pilotfish("run", tiny, long, "-n", 2), "reading the prompt: "),
        (pilotfish("chat", tiny, "-n", 2, "--resume", talk, stdin=long.encode()), "reading the prompt: "),
        (pilotfish("chat", tiny, "-n", 2, "--resume", talk, "--reread", stdin=b"hi\n"), "reading the prompt: "),
        (pilotfish("doctor", tiny, "--again"), "trying onnx on cpu, "),
        (pilotfish(*bench_run), "measuring: "),
        (pilotfish(*bench_curve), "measuring: "),
        (pilotfish(*bench_peers), "opening peers: "),
        (pilotfish(*bench_long), "finding a number in "),
    ):
        assert outcome.code == 0 and said in outcome.err and LINE.search(outcome.err), outcome.err
