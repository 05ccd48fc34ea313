"""`pilotfish doctor`: what this machine has, what was measured on it, and what is missing."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import psutil
from rich.console import Console

from .. import __version__, backends
from ..loading.choosing import Wish, choose
from ..loading.load import resolve
from ..loading.measuring import doubt
from ..loading.trials import doubt_of
from ..runtime.errors import EngineMissingError
from ..runtime.files.bundle import cache_dir, read_json
from ..runtime.profiling.cost_curve import CostCurve
from ..runtime.profiling.engine_trial import KINDS, Choice, Job
from . import machine
from .terminal import LoadProgress, output, print_json, show_table, show_text


def report(model: str | None, *, job: Job, again: bool, as_json: bool) -> None:
    """Print the facts; for a model, also which engine would run it and why."""
    found = _facts()
    choice = None if model is None else _try_out(model, job, again)
    if as_json:
        chosen = None if choice is None else _choice_facts(choice)
        print_json({**found, "choice": chosen})
        return
    out = output()
    if choice is not None:
        _show_choice(out, str(model), choice)
        _show_problems(out, found["engines"])
        return
    _show(out, found)


def _facts() -> dict[str, Any]:
    """Everything the report says, as plain data."""
    engines: dict[str, Any] = {}
    for name in backends.names():
        try:
            backend = backends.get(name)
        except EngineMissingError as error:
            engines[name] = _engine_facts(problem=str(error))
            continue
        version, problem = backend.version(), backend.problem()
        if version is None:
            engines[name] = _engine_facts(install=backend.install)
        elif problem is not None:
            engines[name] = _engine_facts(version, problem=problem)
        else:
            engines[name] = _engine_facts(version, devices=backend.devices(), notes=backend.notes())
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


def _engine_facts(
    version: str | None = None,
    *,
    install: str | None = None,
    problem: str | None = None,
    devices: tuple[str, ...] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """install: the command that adds it where it is missing; problem: why it does not run, and what mends it."""
    return {
        "available": version is not None and problem is None,
        "version": version,
        "devices": list(devices),
        "install": install,
        "problem": problem,
        "notes": dict(notes),
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
            if doubt(curve.measured, float(facts["busy"])):  # of an earlier version, which kept it; measured again
                continue
            step_ms = {str(w): round(1e3 * curve.seconds(w), 2) for w in curve.widths.tolist()}
            found.append({"key": path.stem, "step_ms": step_ms, "row_classes": facts["classes"]})
    return found


def _try_out(model: str, job: Job, again: bool) -> Choice:
    with LoadProgress() as progress:
        return choose(resolve(model, progress), Wish(job=job), progress, again=again)[1]


def _choice_facts(choice: Choice) -> dict[str, Any]:
    trials = [
        {
            **asdict(t),
            "usable": t.usable,
            "tokens_per_s": {k.name: 1 / t.token_s(k, choice.exact) for k in KINDS} if t.usable else {},
            "job_s": t.seconds(choice.job, choice.exact) if t.step_s else None,
            "doubt": doubt_of(t),
        }
        for t in choice.trials
    ]
    return {"job": asdict(choice.job), "exact": choice.exact, "trials": trials}


def _show(out: Console, found: dict[str, Any]) -> None:
    show_text(out, f"pilotfish {found['pilotfish']}, Python {found['python']}, {found['system']}")
    memory = found["memory_bytes"] / 2**30
    show_text(out, f"{found['processor']}, {found['cores']} cores, {memory:.1f} GiB, cache in {found['cache']}")
    show_text(out, f"instruction sets that engines use: {', '.join(found['instruction_sets']) or 'unknown'}")
    engines = found["engines"]
    rows = [(name, engine["version"] or "", _state(engine)) for name, engine in engines.items()]
    show_table(out, ("engine", "version", "devices"), rows)
    for name, engine in engines.items():
        if engine["install"] is not None:
            out.print(f"to add {name}: {engine['install']}", soft_wrap=True)
    _show_problems(out, engines)
    for name, engine in engines.items():
        for topic, note in engine["notes"].items():
            show_text(out, f"{name} {topic}: {note}", style="dim")
    for curve in found["measured"]:
        steps = ", ".join(f"{width}: {ms}" for width, ms in curve["step_ms"].items())
        show_text(out, f"{curve['key']}: ms for a step of so many rows: {steps}")
        show_text(out, f"widths with equal bits: {curve['row_classes']}", indent="  ", style="dim")


def _state(engine: dict[str, Any]) -> str:
    if engine["problem"] is not None:
        return "does not run, see below"
    return ", ".join(engine["devices"]) if engine["available"] else "not installed"


def _show_problems(out: Console, engines: dict[str, dict[str, Any]]) -> None:
    """Why engines that are there do not run, each with the command that mends it, in a line that can be copied."""
    for name, engine in engines.items():
        if engine["problem"] is not None:
            out.print(f"{name}: {engine['problem']}", soft_wrap=True)


def _show_choice(out: Console, model: str, choice: Choice) -> None:
    job = choice.job
    show_text(
        out,
        f"{model}: expected seconds of a prompt of {job.prompt_tokens} tokens and an answer of {job.new_tokens}, "
        + (
            "chat, code and copying in equal parts"
            if job.acceptance is None
            else f"{job.acceptance:.0%} of drafts right"
        ),
    )
    kinds = [f"{kind.name} tok/s" for kind in KINDS]
    heads = ("engine", "device", "threads", "T(1) ms", "T(4) ms", "prompt tok/s", *kinds, "answer", "job s")
    rows = []
    for t in choice.trials:
        steps = [f"{1e3 * t.step_s[w]:.1f}" if w in t.step_s else "" for w in (1, 4)]
        speeds = [f"{1 / t.token_s(kind, choice.exact):.0f}" if t.usable else "" for kind in KINDS]
        prefill = f"{1 / t.prefill_s:.0f}" if t.prefill_s else ""
        answer = "unknown" if t.canary_error is None else ("right" if t.usable or t.problem else "wrong")
        seconds = f"{t.seconds(job, choice.exact):.2f}" if t.usable else ""
        rows.append((t.engine, t.device, str(t.threads), *steps, prefill, *speeds, answer if t.step_s else "", seconds))
    if rows:
        show_table(out, heads, rows)
    for t in choice.trials:
        if t.problem:
            show_text(out, f"{t}: {t.problem}")
        if doubt_of(t):
            show_text(out, f"{t}: {doubt_of(t)}; it is tried again the next time")
    if not choice.trials:
        show_text(out, "one engine, one device and the number of threads are given: nothing to choose.")
