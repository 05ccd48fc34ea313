"""`pilotfish export` and `pilotfish verify`: how they look on a terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from ..exporters.parity import Parity
from ..exporting import Job, RefusedExportError, run
from ..verify_report import Report
from ..verifying import verify
from .terminal import print_json

_LEGEND = """\
top-1: the same best token; agree: the same, or one that the source finds all but as good; other from:
where the first greedy answer leaves the source's, and in how many of all"""
_ROUNDING = """;
rounded: the source with rounded weights; what formats add to that is mostly the rounding of activations."""


class StepProgress:
    """The steps of long work, each with a bar and its time; without a terminal, a line for each that is done."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._console = console
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console)
        self._step: str | None = None
        self._task = self._bars.add_task("", visible=False)
        self._began = time.perf_counter()

    def __enter__(self) -> StepProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end_step()
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, what: str, share: float) -> None:
        if what != self._step:
            self._end_step()
            self._step, self._began = what, time.perf_counter()
            self._task = self._bars.add_task(what, total=1.0)
        self._bars.update(self._task, completed=share)

    def _end_step(self) -> None:
        if self._step is None:
            return
        self._bars.update(self._task, completed=1.0)
        self._bars.stop_task(self._task)
        if not self._console.is_terminal:
            self._console.print(f"{self._step}: {time.perf_counter() - self._began:.1f} s")
        self._step = None


def run_export(job: Job, as_json: bool) -> None:
    """Export and print the comparison; a refused export prints it too, and is a ParityError."""
    with StepProgress(_console()) as progress:
        try:
            report = run(job, progress)
        except RefusedExportError as error:
            progress.__exit__()
            show(error.report, as_json)
            raise
    show(report, as_json)
    if report.formats and not as_json:
        _console().print(f"pilotfish run {job.out}")


def run_verify(
    folder: Path,
    source: str | None,
    formats: tuple[str, ...] | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare and print; exit code 1 where a format is refused."""
    with StepProgress(_console()) as progress:
        report = verify(folder, source, formats=formats, device=device, threads=threads, progress=progress)
    show(report, as_json)
    if not report.ok:
        sys.exit(1)


def show(report: Report, as_json: bool) -> None:
    """Print the table of a report, or the report as one JSON object."""
    if as_json:
        print_json(as_object(report))
        return
    out = Console(highlight=False, markup=False)
    if report.targets:
        out.print(_mobile_table(report))
    if report.formats:
        out.print(_comparison(report))
    for one in report.formats:
        for problem in one.problems:
            out.print(f"{one.form} REFUSED: {problem}", soft_wrap=True)
    for name, reason in report.left_out.items():
        out.print(f"{name}: {reason}", soft_wrap=True)
    for name, reason in report.failed.items():
        out.print(f"{name} FAILED: {reason}", soft_wrap=True)
    if report.formats:
        out.print(_LEGEND + ("." if report.rounding is None else _ROUNDING), soft_wrap=True)


def _comparison(report: Report) -> Table:
    """Every format that an engine was asked about."""
    compared = "the source itself" if report.with_source else "the source's stored answers"
    heads = ("format", "MB", "time", "max, mean\n|dlogit|", "KL", "top-1", "agree", "perpl.", "other\nfrom", "")
    table = Table(
        *(Column(head, no_wrap=True) for head in heads),
        title=f"{report.folder}, compared with {compared}",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for one in report.formats:
        times = (report.seconds.get(one.form), one.seconds)
        seconds = "+".join(f"{t:.0f}" for t in times if t is not None) + " s"
        verdict = "ok" if one.ok else "NO"
        table.add_row(one.form, f"{one.n_bytes / 1e6:.0f}", seconds, *_parity_cells(one.parity), verdict)
    if report.rounding is not None:
        table.add_row("rounded", "", "", *_parity_cells(report.rounding), "")
    source = next((one.parity.perplexity_source for one in report.formats), None)
    if source is not None:
        table.add_row("source", *[""] * 6, f"{source:.2f}", "", "")
    return table


def _mobile_table(report: Report) -> Table:
    """Every target of the mobile pack, run once where it was written."""
    table = Table("mobile", "MB", "time", "relative difference", "agree", "run here", title=str(report.folder))
    for one in report.targets:
        found = [f"{one.measured[key]:.3g}" if one.measured else "" for key in ("relative_difference", "agreement")]
        seconds = f"{report.seconds[one.name]:.0f} s" if one.name in report.seconds else ""
        table.add_row(
            one.name, f"{one.n_bytes / 1e6:.0f}", seconds, *found, "yes" if one.measured else "no: unverified"
        )
    return table


def _parity_cells(p: Parity) -> tuple[str, ...]:
    """What is the same for a format and for rounded weights."""
    left = p.greedy_prompts - p.greedy_equal
    return (
        "" if p.max_difference is None else f"{p.max_difference:.2g}, {p.mean_difference:.2g}",
        f"{p.kl:.4f}",
        f"{p.top1:.3f}",
        f"{p.agreement:.3f}",
        f"{p.perplexity:.2f}",
        "" if p.greedy_first is None else f"{p.greedy_first} ({left}/{p.greedy_prompts})",
    )


def as_object(report: Report) -> dict[str, object]:
    """The report for programs."""
    return {
        "folder": str(report.folder),
        "ok": report.ok,
        "with_source": report.with_source,
        "left_out": dict(report.left_out),
        "failed": dict(report.failed),
        "mobile": {
            one.name: {"bytes": one.n_bytes, "verified": bool(one.measured), **one.measured} for one in report.targets
        },
        "formats": {
            one.form: {
                "ok": one.ok,
                "engine": one.engine,
                "engine_version": one.engine_version,
                "device": one.device,
                "problems": list(one.problems),
                "thresholds": one.thresholds.facts(),
                **one.facts(),
                **({"export_s": report.seconds[one.form]} if one.form in report.seconds else {}),
            }
            for one in report.formats
        },
        **({} if report.rounding is None else {"rounded": report.rounding.facts()}),
    }


def _console() -> Console:
    return Console(stderr=True, highlight=False, markup=False)
