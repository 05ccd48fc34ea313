"""Standard input and output as they may be found: closed, full, without a reader, or in a narrow encoding."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime.errors import OptionError, PilotfishError


class OutputError(PilotfishError):
    """Standard output takes no more: its disk is full, for example."""


class ReaderGoneError(Exception):
    """Whoever read standard output has enough: `pilotfish run ... | head`. Not an OSError, which click would take."""


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Streams that a command can use, whatever it was started with; those there were are put back.

    What standard output's encoding has no character for is replaced there. Raises OptionError where standard output is
    closed, OutputError where it takes no more, and ReaderGoneError.
    """
    _fill_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        try:
            if sys.stdout is None:
                raise OptionError("standard output is closed, and answers go there; leave it open, or give it a file.")
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout = _guarded(sys.stdout, "replace", answers=True)
            if sys.stderr is None:
                sys.stderr = nowhere
            elif isinstance(sys.stderr, io.TextIOWrapper):
                sys.stderr = _guarded(sys.stderr, "backslashreplace", answers=False)
            yield
            sys.stdout.flush()
        finally:
            guarded = sys.stdout, sys.stderr
            sys.stdin, sys.stdout, sys.stderr = before
            for stream in guarded:
                if stream is not None:
                    with contextlib.suppress(OutputError, ReaderGoneError):
                        stream.flush()  # here, and not when it is collected


def _fill_closed() -> None:
    """Keep the numbers of closed standard streams from the next files that are opened: what a library prints would be
    written into them."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        pass
    os.close(number)


def _guarded(out: io.TextIOWrapper, errors: str, *, answers: bool) -> io.TextIOWrapper:
    """The same output, which says by errors of ours what became of it, where it is for answers."""
    below: Any = out.buffer
    guard = _Guard(below.raw if isinstance(below, io.BufferedWriter) else below, answers)
    return io.TextIOWrapper(io.BufferedWriter(guard), out.encoding, errors, line_buffering=out.line_buffering)


class _Guard(io.RawIOBase):
    """What lies under a stream. Once that failed it swallows the rest; where no answers go, what failed, too."""

    def __init__(self, raw: io.RawIOBase, answers: bool) -> None:
        self._raw, self._answers, self._failed = raw, answers, False

    def write(self, data: Any) -> int | None:
        if self._failed:
            return memoryview(data).nbytes
        try:
            return self._raw.write(data)
        except OSError as error:
            self._failed = True
            if not self._answers:  # nobody can be told
                return memoryview(data).nbytes
            if isinstance(error, BrokenPipeError):
                raise ReaderGoneError from None
            raise OutputError(
                f"standard output cannot be written: {error.strerror or error}. Make room, or send it somewhere else."
            ) from None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()
