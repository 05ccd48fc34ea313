"""What commands share on a terminal: where they write, tables that fit, and bars for long steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_PIPED = 1 << 20  # columns of what is no terminal: nothing is wrapped for a program or a file
_GAP = "  "  # between columns
_TALLEST = 4  # lines of a cell; a row that needs more is easier to read as a list


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


def show_table(out: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table: as it is, with cells wrapped between words, or, where even that is too wide, row by row.

    No word is broken and nothing is left out. What is no terminal gets a line a row, however long.
    """
    if title:
        out.print(title)
    widths = _widths([heads, *rows], out.width)
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


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The width of each column; None where a table would break words, or have rows of many lines."""
    columns = list(zip(*rows, strict=True))
    wished = [max(map(cell_len, column)) for column in columns]
    widths = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    left = room - len(_GAP) * (len(columns) - 1) - sum(widths)
    if left < 0:
        return None
    for _ in range(min(left, sum(wished) - sum(widths))):
        neediest = max(range(len(columns)), key=lambda i: wished[i] - widths[i])
        widths[neediest] += 1
    tallest = max(len(_wrapped(cell, widths[i])) for i, column in enumerate(columns) for cell in column)
    return widths if tallest <= _TALLEST else None


def _row_lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for i in range(max(map(len, cells))):
        parts = (_padded(cell[i] if i < len(cell) else "", width) for cell, width in zip(cells, widths, strict=True))
        yield _GAP.join(parts).rstrip()


def _show_record(out: Console, heads: Sequence[str], row: Sequence[str]) -> None:
    """One row: its first cell, and below it what the others are called and say."""
    for text in _wrapped(row[0], out.width):
        out.print(text, soft_wrap=True)
    said = (f"{head}: {cell}" if head else cell for head, cell in zip(heads[1:], row[1:], strict=True) if cell)
    for text in _wrapped("; ".join(said), out.width - len(_GAP)):
        out.print(_GAP + text, soft_wrap=True)


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


class LoadProgress:
    """Shows long steps of loading, on a terminal and only if there are any."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> Callable[[str, float], None]:
        return self._report

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _report(self, what: str, share: float) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._progress = Progress(*columns, TimeRemainingColumn(), console=console(), transient=True)
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=1.0)
        self._progress.update(self._tasks[what], completed=share)  # type: ignore[arg-type]
