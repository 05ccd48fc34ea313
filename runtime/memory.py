"""How much memory this process may still take."""

from __future__ import annotations

import contextlib

import psutil


def free_memory() -> int:
    """Bytes: what the machine has free, or what is left of a limit on the process (`ulimit -v`), whichever is less."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free = min(free, max(limit - int(psutil.Process().memory_info().vms), 0))
    return free
