"""Settings that a library takes from nowhere but an environment variable."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_one_at_a_time = threading.Lock()  # held while the environment differs from what the user set


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable that an engine reads while it opens something, set for that long."""
    with _one_at_a_time:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            os.environ.pop(name, None)
            if before is not None:
                os.environ[name] = before
