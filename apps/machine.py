"""The machine a figure was measured on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def describe() -> str:
    """Processor, cores and system, in one line."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}"
