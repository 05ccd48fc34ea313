"""Packages that count their users over the network are loaded without the part that does."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

_one_at_a_time = threading.Lock()
_SENDERS = ("openvino_telemetry",)  # OpenVINO, NNCF and optimum-intel send events as they are imported and as they work


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Whatever is first imported in here finds no telemetry package, and falls back to sending nothing, for good."""
    with _one_at_a_time:
        absent = [name for name in _SENDERS if name not in sys.modules]
        for name in absent:
            sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
        try:
            yield
        finally:
            for name in absent:
                sys.modules.pop(name, None)
