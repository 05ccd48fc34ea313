"""How far the formats of a bundle were found to be from their source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..exporters.parity.parity import Parity
from ..exporters.parity.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class FormatReport:
    """One format of a bundle on its engine."""

    form: str
    engine: str
    engine_version: str
    device: str
    n_bytes: int  # of the format's own files
    seconds: float
    parity: Parity
    canary_error: float | None
    thresholds: Thresholds
    problems: tuple[str, ...]  # why it is refused; empty where it is not

    @property
    def ok(self) -> bool:
        """Whether every threshold is kept."""
        return not self.problems

    def facts(self) -> dict[str, float]:
        """Numbers for the manifest."""
        own = {"bytes": float(self.n_bytes), "verify_s": round(self.seconds, 2)}
        return self.parity.facts() | own | ({} if self.canary_error is None else {"canary_error": self.canary_error})


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One target of the mobile pack. measured: against the source, where it was written; empty: it could not be run."""

    name: str
    n_bytes: int
    measured: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Report:
    """All formats of a bundle that could be run here.

    left_out: why others were not. Of an export: seconds that each format took to write; targets of the mobile pack;
    failed: why a format that was asked for could not be made; rounding: the source itself with rounded weights.
    """

    folder: Path
    formats: tuple[FormatReport, ...]
    left_out: Mapping[str, str]
    with_source: bool  # compared with the source itself, or with its stored answers
    seconds: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[TargetReport, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    rounding: Parity | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is refused, and nothing failed."""
        return not self.failed and all(report.ok for report in self.formats)
