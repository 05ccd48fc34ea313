"""What commands share on a terminal: where they write, and bars for long steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def console() -> Console:
    """Where everything that is not the answer goes."""
    return Console(stderr=True, highlight=False, markup=False)


def bars(*columns: ProgressColumn) -> Progress:
    """Bars on standard error while something is done, where that is a terminal; elsewhere they would be empty lines."""
    screen = console()
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


def print_json(value: object) -> None:
    """One line of JSON on standard output: its characters as they are, or as escapes where the encoding lacks some."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


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
            self._progress = bars(*columns, TimeRemainingColumn())
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=1.0)
        self._progress.update(self._tasks[what], completed=share)  # type: ignore[arg-type]
