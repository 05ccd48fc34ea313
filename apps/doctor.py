"""`pilotfish doctor`: what this machine has, what was measured on it, and what is missing."""

from __future__ import annotations

import json
import os
import platform

import psutil
from rich.console import Console
from rich.table import Table

from .. import __version__, backends
from ..runtime.bundle import cache_dir, read_json
from . import machine


def facts() -> dict[str, object]:
    """Everything the report says, as plain data."""
    engines = {}
    for name in backends.names():
        backend = backends.get(name)
        version = backend.version()
        engines[name] = {
            "available": version is not None,
            "version": version,
            "devices": list(backend.devices()),
            "install": None if version is not None else backend.install,
        }
    return {
        "pilotfish": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": machine.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cache": str(cache_dir()),
        "engines": engines,
        "measured": _measured(),
    }


def _measured() -> list[dict[str, object]]:
    """Cost curves and row classes found on this machine so far."""
    found = []
    for path in sorted((cache_dir() / "costs").glob("*.json")):
        curve = read_json(path)
        if isinstance(curve, dict) and isinstance(curve.get("widths"), list) and isinstance(curve.get("base"), list):
            step_ms = {str(int(w)): round(1e3 * s, 2) for w, s in zip(curve["widths"], curve["base"], strict=False)}
            found.append({"key": path.stem, "step_ms": step_ms, "row_classes": curve.get("classes")})
    return found


def report(as_json: bool) -> None:
    """Print the facts."""
    found = facts()
    if as_json:
        print(json.dumps(found))
        return
    out = Console(highlight=False, markup=False)
    out.print(f"pilotfish {found['pilotfish']}, Python {found['python']}, {found['system']}")
    memory = psutil.virtual_memory().total / 2**30
    out.print(f"{found['processor']}, {found['cores']} cores, {memory:.1f} GiB, cache in {found['cache']}")
    table = Table("engine", "version", "devices", "to add it")
    engines = found["engines"]
    assert isinstance(engines, dict)
    for name, engine in engines.items():
        table.add_row(name, engine["version"] or "missing", ", ".join(engine["devices"]), engine["install"] or "")
    out.print(table)
    measured = found["measured"]
    assert isinstance(measured, list)
    for curve in measured:
        steps = ", ".join(f"{width}: {ms}" for width, ms in curve["step_ms"].items())
        out.print(f"{curve['key']}: ms for a step of so many rows: {steps}")
        out.print(f"  widths with equal bits: {curve['row_classes']}", style="dim")
