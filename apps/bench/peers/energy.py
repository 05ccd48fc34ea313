"""Joules that the processor used, where the machine shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class _Counter:
    path: Path
    range_uj: int  # where it begins again at 0

    def read(self) -> int:
        return int((self.path / "energy_uj").read_text())


class EnergyMeter:
    """The processor packages' own counters (RAPL): of everything that runs on them, not of one process."""

    def __init__(self, counters: tuple[_Counter, ...]) -> None:
        self._counters = counters
        self._before: list[int] = []

    @classmethod
    def find(cls, root: Path = _POWERCAP) -> EnergyMeter | None:
        """None where there are no such counters, or this user may not read them."""
        counters = []
        try:
            for zone in sorted(root.glob("intel-rapl:*")):
                if zone.name.count(":") == 1:  # a package; those below are parts of it
                    counters.append(_Counter(zone, int((zone / "max_energy_range_uj").read_text())))
                    counters[-1].read()
        except (OSError, ValueError):
            return None
        return cls(tuple(counters)) if counters else None

    def begin(self) -> None:
        self._before = [counter.read() for counter in self._counters]

    def joules(self) -> float:
        """Since begin(), which must be less than a counter's range ago."""
        now = [counter.read() for counter in self._counters]
        gone = zip(self._counters, self._before, now, strict=True)
        return 1e-6 * sum((after - before) % counter.range_uj for counter, before, after in gone)
