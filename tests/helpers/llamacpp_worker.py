"""Run as a process: opens each GGUF file named on standard input with llama.cpp, and says how that ended.

For each line one line comes back: "opened", or "refused" and the reason. What ends this process is found by the test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pilotfish.backends.llamacpp.backend import BACKEND
from pilotfish.runtime.encoder_input import prepare
from pilotfish.runtime.errors import PilotfishError
from pilotfish.runtime.files.open_model import open_model


def attempt(path: Path) -> str:
    """How opening a file and taking two steps with it ended."""
    try:
        weights = BACKEND.open(open_model(path), device=None, threads=1, kv_dtype=None)
    except PilotfishError as error:
        return f"refused {type(error).__name__} {error}"
    try:
        session = weights.session(min(weights.info.context_length, 32))
        prepare(session)
        session.forward(np.zeros(3, dtype=np.int64), n_logits=1)
        session.forward(np.zeros(1, dtype=np.int64), n_logits=1)
        session.close()
    except PilotfishError as error:
        return f"refused {type(error).__name__} {error}"
    finally:
        weights.close()
    return "opened"


if __name__ == "__main__":
    for line in sys.stdin:
        print(attempt(Path(line.rstrip("\n"))).replace("\n", " "), flush=True)
