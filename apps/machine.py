"""The machine a figure was measured on, in words."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path
from typing import Any

_TELLING = (  # what engines have kernels for
    "avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def describe() -> str:
    """Processor, cores and system, in one line."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}"


def instruction_sets() -> list[str]:
    """Those of the processor's vector and matrix instruction sets that engines make use of."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    if not flags:  # not Linux: what numpy found out for itself
        core: Any = importlib.import_module("numpy._core._multiarray_umath")
        found: dict[str, bool] = getattr(core, "__cpu_features__", {})
        flags = {name.lower() for name, here in found.items() if here}
    return [name for name in _TELLING if name in flags]


def _cpuinfo(key: str) -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() == key:
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return None
