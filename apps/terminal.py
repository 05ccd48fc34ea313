"""What commands share on a terminal: where they write, tables that fit, and how far long steps are."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..runtime.progress import Counted
from ..runtime.sampling.finite import for_json

_LINE_S = 5.0  # the least time between two lines about a step
_LINE_SHARE = 0.1  # of all the time so far, where that is longer
_PIPED = 1 << 20  # columns of what is no terminal: nothing is wrapped for a program or a file
_GAP = "  "  # between columns
_TALLEST = 6  # lines of a cell; a row that needs more is easier to read as a list

_now = time.monotonic


def console() -> Console:
    """Where everything that is not the answer goes."""
    return _fitted(Console(stderr=True, highlight=False, markup=False))


def output() -> Console:
    """Where reports go: standard output."""
    return _fitted(Console(highlight=False, markup=False))


def _fitted(made: Console) -> Console:
    if not made.is_terminal:
        made.width = _PIPED
    return made


def show_text(out: Console, text: str, indent: str = "", style: str | None = None) -> None:
    """Print sentences, wrapped between words; a word that is longer than a line is the terminal's to wrap."""
    for line in _wrapped(text, out.width - len(indent)):
        out.print(indent + line, style=style, soft_wrap=True)


def show_table(out: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table: as it is, with cells wrapped between words, or, where even that is too wide, row by row.

    No word is broken and nothing is left out. What is no terminal gets a line a row, however long.
    """
    if title:
        out.print(title)
    widths = _widths(heads, rows, out.width)
    if widths is None:
        for row in rows:
            _show_record(out, heads, row)
        return
    line = "─" if out.is_terminal and out.encoding.startswith("utf") else "-"
    for row in (heads, [line * width for width in widths], *rows):
        for text in _row_lines(row, widths):
            out.print(text, soft_wrap=True)


def show_facts(out: Console, facts: Mapping[str, object], title: str = "") -> None:
    """Print names and values, a line each; values are wrapped between words beside their names."""
    if title:
        out.print(title)
    indent = max(map(cell_len, facts), default=0) + len(_GAP)
    for name, value in facts.items():
        first, *others = _wrapped(str(value), out.width - indent)
        out.print(_padded(name, indent) + first, soft_wrap=True)
        for text in others:
            out.print(" " * indent + text, soft_wrap=True)


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The width of each column; None where a table would break words, or have rows of many lines.

    What is left beyond the longest words keeps short cells whole first; heads may be wrapped.
    """
    columns = list(zip(heads, *rows, strict=True))
    room -= len(_GAP) * (len(columns) - 1)
    whole = [max(map(cell_len, column)) for column in columns]
    if sum(whole) <= room:
        return whole
    widths = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    left = room - sum(widths)
    if left < 0:
        return None
    needs = [max(map(cell_len, column[1:]), default=0) - width for column, width in zip(columns, widths, strict=True)]
    for i in sorted(range(len(columns)), key=needs.__getitem__):
        more = min(max(needs[i], 0), left)
        widths[i], left = widths[i] + more, left - more
    tallest = max(len(_wrapped(cell, widths[i])) for i, column in enumerate(columns) for cell in column)
    return widths if tallest <= _TALLEST else None


def _row_lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for i in range(max(map(len, cells))):
        parts = (_padded(cell[i] if i < len(cell) else "", width) for cell, width in zip(cells, widths, strict=True))
        yield _GAP.join(parts).rstrip()


def _show_record(out: Console, heads: Sequence[str], row: Sequence[str]) -> None:
    """One row: its first cell, and below it the others, each after its head."""
    first, *others = (f"{head}: {cell}" if head else cell for head, cell in zip(heads, row, strict=True) if cell)
    show_text(out, first)
    show_text(out, "; ".join(others), indent=_GAP)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most this width, one at least, unless a single word is longer."""
    if "\n" not in text and cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


class Ticker:
    """When a line is due where no bar can be drawn: after seconds at first, and the more seldom the longer it takes."""

    def __init__(self) -> None:
        self._began = self._told = _now()

    def due(self) -> bool:
        """Whether to say something now; what is said then counts."""
        now = _now()
        if now - self._told < max(_LINE_S, _LINE_SHARE * (now - self._began)):
            return False
        self._told = now
        return True


def bars(*columns: ProgressColumn) -> Progress:
    """Bars on standard error while something is done, where that is a terminal; elsewhere they would be empty lines."""
    screen = console()
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


def print_json(value: object) -> None:
    """One line of JSON on standard output: its characters as they are, or as escapes where the encoding lacks some."""
    value = for_json(value)
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


class LoadProgress:
    """Shows how far long steps are: a bar each on a terminal, elsewhere a line now and then.

    keep: every step stays to be seen with its time, however short it was. patience_s: no bar before it took so long.
    """

    def __init__(self, *, keep: bool = False, patience_s: float = 0.0) -> None:
        self._keep, self._patience_s = keep, patience_s
        self._out, self._ticker = console(), Ticker()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._step: str | None = None  # the last one that was reported,
        self._share = 0.0  # and how far it was
        self._ended = False
        self._timer: threading.Timer | None = None  # tells of a step that says nothing for long

    def __enter__(self) -> Callable[[str, float], None]:
        return self._report

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._end_step()
        if self._bars is not None:
            self._bars.stop()

    def tokens(self, what: str) -> Counted:
        """What to call with (tokens done, tokens in all) of a step."""
        return lambda done, total: self._report(what, done / total)

    def _report(self, what: str, share: float) -> None:
        if self._keep and what != self._step:
            self._end_step()
            self._began.pop(what, None)
        began, self._step, self._share = self._began.setdefault(what, _now()), what, share
        took = _now() - began
        if not self._out.is_terminal:
            self._tell()
            if self._timer is None:
                self._wait()
        elif took >= self._patience_s:
            self._draw(what, share)

    def _tell(self) -> None:
        """A line about the step, if one is due."""
        if self._step is not None and self._ticker.due():
            took = _now() - self._began[self._step]
            self._out.print(f"{self._step}: {self._share:.0%} after {took:.0f} s", soft_wrap=True)

    def _wait(self) -> None:
        """Look again in a while, whether the step says anything or not."""
        self._timer = threading.Timer(_LINE_S, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        if self._ended:
            return
        if self._share < 1.0:
            self._tell()
        self._wait()

    def _draw(self, what: str, share: float) -> None:
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            time_column = TimeElapsedColumn() if self._keep else TimeRemainingColumn()
            self._bars = Progress(*columns, time_column, console=self._out, transient=not self._keep)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=1.0)
        self._bars.update(self._tasks[what], completed=share)

    def _end_step(self) -> None:
        """Where steps stay, the last one is done and keeps its time."""
        if not self._keep or self._step is None:
            return
        task = self._tasks.pop(self._step, None)
        if task is not None and self._bars is not None:
            self._bars.update(task, completed=1.0)
            self._bars.stop_task(task)
        elif not self._out.is_terminal:
            self._out.print(f"{self._step}: {_now() - self._began[self._step]:.1f} s", soft_wrap=True)
        self._step = None
