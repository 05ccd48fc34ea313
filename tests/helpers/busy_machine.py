"""Other programs that use the processor: where that is looked at."""

from __future__ import annotations

import pytest

other_programs = pytest.mark.parametrize(
    "seen", ["pilotfish.loading.cpu_load.cpu_load", "pilotfish.loading.cpu_load.Others.share"]
)  # before, and meanwhile
