"""How much other programs use the processor, and so how far what was timed beside them can be relied on."""

from __future__ import annotations

import psutil

_BUSY = 0.3
_TICKS_S = 0.1  # below that a clock of 100 ticks a second says nothing


def cpu_load() -> float:
    """Share of the processor in use, 0 to 1, over a tenth of a second; ask while nothing of ours runs."""
    return float(psutil.cpu_percent(interval=0.1)) / 100


class Others:
    """Other programs, from now on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = self._seconds()

    def share(self) -> float:
        """Share of the processor that they have used since, 0 to 1; so is what a virtual machine's host took."""
        in_all, idle, own = (now - began for now, began in zip(self._seconds(), self._began, strict=True))
        return min(max((in_all - idle - own) / in_all, 0.0), 1.0) if in_all >= _TICKS_S else 0.0

    def _seconds(self) -> tuple[float, float, float]:
        """Of all cores together, of those that were idle, and of this process and those that it has ended."""
        system, own = psutil.cpu_times(), self._process.cpu_times()
        counted = {name: s for name, s in system._asdict().items() if not name.startswith("guest")}  # part of user
        ours = own.user + own.system + own.children_user + own.children_system
        return sum(counted.values()), system.idle + getattr(system, "iowait", 0.0), ours


def disturbed(share: float) -> bool:
    """Whether what was timed beside so much work of others is doubtful."""
    return share >= _BUSY
