"""A runtime's process, as who asks it sees it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ....runtime.errors import PilotfishError

_FOLDER = Path(__file__).parent
_JOIN_S = 5.0  # for what a process started and left behind, which may hold its output open
_BY_PATH = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("bench_peers", folder + "/__init__.py",
                                              submodule_search_locations=[folder])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
from bench_peers.worker import main
main()
"""


class PeerFailedError(PilotfishError):
    """A runtime did not do what it was asked: one line that says why."""


class PeerMissingError(PilotfishError):
    """A runtime is not installed."""


def command_of(module: str, python: str | None) -> list[str]:
    """The command that starts the worker of a runtime. python: another interpreter, which need not have Pilotfish."""
    if python is None:
        return [sys.executable, "-m", f"{__package__}.worker", module]
    return [python, "-c", _BY_PATH, str(_FOLDER), module]


def environment(threads: int, own: bool) -> dict[str, str]:
    """Variables of a worker. own: of this interpreter, which is to find what this process finds."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    path = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)} if own else {}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**kept, **path, **offline, "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}


class Worker:
    """One process that answers a JSON object with a JSON object, each within limit_s seconds."""

    def __init__(self, command: Sequence[str], limit_s: float, variables: dict[str, str] | None = None) -> None:
        """Raises PeerFailedError where the process does not start."""
        self._limit_s = limit_s
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=variables,
                start_new_session=True,  # Ctrl-C is for who asks; and what a runtime starts ends with it
            )
        except OSError as error:
            self._said.close()
            raise PeerFailedError(f"{command[0]} does not start: {error.strerror or error}") from error
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply. Raises PeerMissingError and PeerFailedError; after those of a process that ended or hangs, too,
        it is closed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        reply = self._reply()
        if "missing" in reply:
            raise PeerMissingError(str(reply["missing"]))
        if "failed" in reply:
            raise PeerFailedError(str(reply["failed"]))
        return reply

    def close(self) -> None:
        """End the process and whatever it has started. A second close does nothing."""
        if self._said.closed:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join(_JOIN_S)
        for stream in (self._process.stdin, self._said):
            with contextlib.suppress(OSError):  # of a line that nobody took
                if stream is not None:
                    stream.close()

    def _reply(self) -> dict[str, Any]:
        until = time.monotonic() + self._limit_s
        while True:
            try:
                line = self._lines.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                self.close()
                raise PeerFailedError(f"no answer within {self._limit_s:g} s") from None
            if line is None:
                raise self._ended()
            try:
                reply = json.loads(line)
            except ValueError:
                continue  # what a library prints
            if isinstance(reply, dict):
                return reply

    def _ended(self) -> PeerFailedError:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip().splitlines()
        self.close()
        if code < 0:
            return PeerFailedError(f"its process died of {_signal(-code)}")
        last = " ".join(said[-1].split())[:300] if said else ""
        return PeerFailedError(f"its process ended with code {code}{': ' if last else ''}{last}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
