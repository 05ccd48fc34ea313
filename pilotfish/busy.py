"""How much other programs use the processor: what was timed beside them is timed again once it is quiet."""

from __future__ import annotations

import psutil

_BUSY, _QUIET = 0.3, 0.1


def busy_share() -> float:
    """Share of the processor in use, 0 to 1, over a tenth of a second; ask while nothing of ours runs."""
    return float(psutil.cpu_percent(interval=0.1)) / 100


def disturbed(share: float) -> bool:
    """Whether what was timed beside so much work is doubtful."""
    return share >= _BUSY


def quiet(share: float) -> bool:
    """Whether timing anew would do better."""
    return share <= _QUIET
