"""`pilotfish doctor`: what this machine has, what was measured on it, and what is missing."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import asdict
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from .. import __version__, backends
from ..choosing import Wish, choose
from ..loading import resolve
from ..runtime.bundle import cache_dir, read_json
from ..runtime.choice import Choice, Job
from ..runtime.cost import CostCurve
from ..runtime.errors import EngineMissingError
from . import machine
from .terminal import LoadProgress, print_json


def report(model: str | None, *, job: Job, again: bool, as_json: bool) -> None:
    """Print the facts; for a model, also which engine would run it and why."""
    found = _facts()
    choice = None if model is None else _try_out(model, job, again)
    if as_json:
        chosen = None if choice is None else _choice_facts(choice)
        print_json({**found, "choice": chosen})
        return
    out = Console(highlight=False, markup=False)
    if choice is not None:
        _show_choice(out, str(model), choice)
        return
    _show(out, found)


def _facts() -> dict[str, Any]:
    """Everything the report says, as plain data."""
    engines: dict[str, Any] = {}
    for name in backends.names():
        try:
            backend = backends.get(name)
        except EngineMissingError as error:
            engines[name] = {
                "available": False,
                "version": None,
                "devices": [],
                "install": None,
                "notes": {"": str(error)},
            }
            continue
        version = backend.version()
        engines[name] = {
            "available": version is not None,
            "version": version,
            "devices": list(backend.devices()),
            "install": None if version is not None else backend.install,
            "notes": backend.notes() if version is not None else {},
        }
    return {
        "pilotfish": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": machine.processor(),
        "instruction_sets": machine.instruction_sets(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "cache": str(cache_dir()),
        "engines": engines,
        "measured": _measured(),
    }


def _measured() -> list[dict[str, Any]]:
    """Cost curves and row classes found on this machine so far."""
    found = []
    for path in sorted((cache_dir() / "costs").glob("*.json")):
        facts = read_json(path)
        if not isinstance(facts, dict):
            continue
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of an older version, or of a draft
            curve = CostCurve.from_facts(facts)
            step_ms = {str(w): round(1e3 * curve.seconds(w), 2) for w in curve.widths.tolist()}
            found.append({"key": path.stem, "step_ms": step_ms, "row_classes": facts["classes"]})
    return found


def _try_out(model: str, job: Job, again: bool) -> Choice:
    with LoadProgress() as progress:
        return choose(resolve(model, progress), Wish(job=job), progress, again=again)[1]


def _choice_facts(choice: Choice) -> dict[str, Any]:
    trials = [
        {**asdict(t), "usable": t.usable, "job_s": t.seconds(choice.job, choice.exact) if t.step_s else None}
        for t in choice.trials
    ]
    return {"job": asdict(choice.job), "exact": choice.exact, "trials": trials}


def _show(out: Console, found: dict[str, Any]) -> None:
    out.print(f"pilotfish {found['pilotfish']}, Python {found['python']}, {found['system']}")
    memory = found["memory_bytes"] / 2**30
    out.print(f"{found['processor']}, {found['cores']} cores, {memory:.1f} GiB, cache in {found['cache']}")
    out.print(f"instruction sets that engines use: {', '.join(found['instruction_sets']) or 'unknown'}")
    table = Table("engine", "version", "devices", "to add it")
    for name, engine in found["engines"].items():
        table.add_row(name, engine["version"] or "missing", ", ".join(engine["devices"]), engine["install"] or "")
    out.print(table)
    for name, engine in found["engines"].items():
        for topic, note in engine["notes"].items():
            out.print(f"{name} {topic}: {note}".replace(" :", ":"), style="dim", soft_wrap=True)
    for curve in found["measured"]:
        steps = ", ".join(f"{width}: {ms}" for width, ms in curve["step_ms"].items())
        out.print(f"{curve['key']}: ms for a step of so many rows: {steps}")
        out.print(f"  widths with equal bits: {curve['row_classes']}", style="dim")


def _show_choice(out: Console, model: str, choice: Choice) -> None:
    job = choice.job
    out.print(
        f"{model}: expected seconds of a prompt of {job.prompt_tokens} tokens and an answer of {job.new_tokens}, "
        f"where {job.acceptance:.0%} of drafted tokens are right"
    )
    table = Table("engine", "device", "threads", "T(1) ms", "T(4) ms", "T(8) ms", "prompt tok/s", "answer", "job s")
    for t in choice.trials:
        steps = [f"{1e3 * t.step_s[w]:.1f}" if w in t.step_s else "" for w in (1, 4, 8)]
        prefill = f"{1 / t.prefill_s:.0f}" if t.prefill_s else ""
        answer = "unknown" if t.canary_error is None else ("right" if t.usable or t.problem else "wrong")
        seconds = f"{t.seconds(job, choice.exact):.2f}" if t.usable else ""
        table.add_row(t.engine, t.device, str(t.threads), *steps, prefill, answer if t.step_s else "", seconds)
    out.print(table)
    for t in choice.trials:
        if t.problem:
            out.print(f"{t}: {t.problem}", style="dim", soft_wrap=True)
    if not choice.trials:
        out.print("one engine, one device and the number of threads are given: nothing to choose.")
