"""Where tests find each other and the real weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # real_weights.py and friends are plain modules

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("PILOTFISH_ENGINE", "onnx")  # tests that try out engines say so
os.environ.setdefault("PILOTFISH_THREADS", str(min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that the tests of one module share."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
