"""`pilotfish export` and `pilotfish verify`: how they look on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from ..exporters.parity.parity import Parity
from ..exporting.export import Job, RefusedExportError, run
from ..verifying.report import Report
from ..verifying.verify import verify
from .terminal import LoadProgress, console, output, print_json, show_table, show_text

_LEGEND = """top-1: the same best token; agree: the same, or one that the source finds all but as good; other from:
where the first greedy answer leaves the source's, and in how many of all"""
_ROUNDING = """;
rounded: the source with rounded weights; what formats add to that is mostly the rounding of activations."""


def run_export(job: Job, as_json: bool) -> None:
    """Export and print the comparison; a refused export prints it too, and is a ParityError."""
    try:
        with LoadProgress(keep=True) as progress:
            report = run(job, progress)
    except RefusedExportError as error:
        show(error.report, as_json)
        raise
    show(report, as_json)
    if report.formats and not as_json:
        console().print(f"pilotfish run {job.out}")


def run_verify(
    folder: Path,
    source: str | None,
    formats: tuple[str, ...] | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare and print; exit code 1 where a format is refused."""
    with LoadProgress(keep=True) as progress:
        report = verify(folder, source, formats=formats, device=device, threads=threads, progress=progress)
    show(report, as_json)
    if not report.ok:
        sys.exit(1)


def show(report: Report, as_json: bool) -> None:
    """Print the table of a report, or the report as one JSON object."""
    if as_json:
        print_json(as_object(report))
        return
    out = output()
    if report.targets:
        _show_mobile(out, report)
    if report.formats:
        _show_comparison(out, report)
    for one in report.formats:
        for problem in one.problems:
            show_text(out, f"{one.form} REFUSED: {problem}")
    for name, reason in report.left_out.items():
        out.print(f"{name}: {reason}", soft_wrap=True)
    for name, reason in report.failed.items():
        out.print(f"{name} FAILED: {reason}", soft_wrap=True)
    if report.formats:
        show_text(out, _LEGEND + ("." if report.rounding is None else _ROUNDING))


def _show_comparison(out: Console, report: Report) -> None:
    """Every format that an engine was asked about."""
    compared = "the source itself" if report.with_source else "the source's stored answers"
    heads = ("format", "MB", "time", "max, mean |dlogit|", "KL", "top-1", "agree", "perpl.", "other from", "")
    rows: list[tuple[str, ...]] = []
    for one in report.formats:
        times = (report.seconds.get(one.form), one.seconds)
        seconds = "+".join(f"{t:.0f}" for t in times if t is not None) + " s"
        verdict = "ok" if one.ok else "NO"
        rows.append((one.form, f"{one.n_bytes / 1e6:.0f}", seconds, *_parity_cells(one.parity), verdict))
    if report.rounding is not None:
        rows.append(("rounded", "", "", *_parity_cells(report.rounding), ""))
    source = next((one.parity.perplexity_source for one in report.formats), None)
    if source is not None:
        rows.append(("source", *[""] * 6, f"{source:.2f}", "", ""))
    show_table(out, heads, rows, title=f"{report.folder}, compared with {compared}")


def _show_mobile(out: Console, report: Report) -> None:
    """Every target of the mobile pack, run once where it was written."""
    rows = []
    for one in report.targets:
        found = [f"{one.measured[key]:.3g}" if one.measured else "" for key in ("relative_difference", "agreement")]
        seconds = f"{report.seconds[one.name]:.0f} s" if one.name in report.seconds else ""
        verdict = "yes" if one.measured else "no: unverified"
        rows.append((one.name, f"{one.n_bytes / 1e6:.0f}", seconds, *found, verdict))
    heads = ("mobile", "MB", "time", "relative difference", "agree", "run here")
    show_table(out, heads, rows, title=str(report.folder))


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
