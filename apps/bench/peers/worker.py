"""Run as a process: opens one runtime and answers one prompt at a time.

Reads one JSON object a line, {"open": setup} and then {"ask": question}, and writes one for each: {"opened"},
{"answer"}, {"missing"} or {"failed"}. Ends with its input, or with the process that started it. Whatever a runtime
prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from .contract import Engine, NotHereError, Question, Setup

_LOOK_S = 1.0  # between two looks at whether the parent is there
_LONGEST = 300  # characters of what a runtime said


def main() -> None:
    """The runtime that the last argument names: one of the modules beside this one."""
    module = import_module(f".{sys.argv[-1]}", __package__)
    serve(module.ENGINE.open)


def serve(open_engine: Callable[[Setup], Engine]) -> None:
    """Answer until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    engine: Engine | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        reply: dict[str, Any]
        try:
            if engine is None:
                began = time.perf_counter()
                engine = open_engine(Setup(**{**asked["open"], "ends": tuple(asked["open"]["ends"])}))
                reply = {"opened": engine.version, "seconds": time.perf_counter() - began}
            else:
                question = Question(**{**asked["ask"], "ids": tuple(asked["ask"]["ids"])})
                reply = {"answer": asdict(engine.answer(question))}
            reply["peak_bytes"] = peak_bytes(getattr(engine, "pid", os.getpid()))
        except NotHereError as error:
            reply = {"missing": _line(error)}
        except Exception as error:  # whatever a runtime raises is the one line of its row
            reply = {"failed": _line(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def peak_bytes(pid: int) -> int | None:
    """The most memory that a process ever had in RAM, files it maps included; None where the system does not say."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:  # not Linux
        pass
    if pid != os.getpid():
        return None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _end_with_parent(parent: int) -> None:
    """End this process and what it has started once nobody is there to read the answers."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
