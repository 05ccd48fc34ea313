"""Where tests find each other and the real weights, and a machine that is never busy."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

sys.path.insert(0, str(Path(__file__).parent / "helpers"))  # tiny models, real weights and friends

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two test processes share the cores: who waits gives one back
os.environ.setdefault("PILOTFISH_ENGINE", "onnx")  # tests that try out engines say so
os.environ.setdefault("PILOTFISH_THREADS", str(min(2, os.cpu_count() or 1)))

# An example may take as long as the machine lets it.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")

_TICK_S = 2.0**-10  # differences of multiples of a power of two are exact, however long the clock has run


@pytest.fixture(scope="session", autouse=True)
def quiet_machine() -> Iterator[None]:
    """A clock that ticks whenever it is looked at, and no other programs: whatever is timed in this process, and all
    that follows from it, comes out alike however busy the machine is. A test about time brings a clock of its own."""
    from pilotfish.loading import cpu_load as busy

    ticks, still, own = itertools.count(), psutil.cpu_times(), psutil.Process().cpu_times()
    counts = SimpleNamespace(
        cpu_percent=lambda interval: 0.0,
        cpu_times=lambda: still,
        Process=lambda: SimpleNamespace(cpu_times=lambda: own),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(ticks) * _TICK_S)
        patch.setattr(busy, "psutil", counts)
        yield


@pytest.fixture
def real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time as it passes: where looking for a draft must cost far less than a step, as it does on any machine."""
    monkeypatch.setattr(time, "perf_counter", time.monotonic)


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that the tests of one module share."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
