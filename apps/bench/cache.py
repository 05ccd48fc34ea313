"""`pilotfish bench cache`: what each cache policy forgets and saves, against the full cache of the same engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from ... import __version__
from ...loading.choosing import Wish, refuse_impossible
from ...loading.load import load
from ...loading.way_out import with_way_out
from ...runtime.cache.policies.by_name import POLICIES, policy_by_name
from ...runtime.errors import AbilityError, OptionError
from ...runtime.interfaces import ModelInfo
from ...runtime.sampling.finite import for_json
from ...runtime.storage import write_atomically
from .. import machine
from ..terminal import LoadProgress, Ticker, bars, console, print_json
from .cache_report import line, show, write_report
from .cache_rows import FULL, Bench, ExactDistribution, Row
from .inputs import Settings, names_budget, read_share, read_text
from .plotting import require_plots

_OWN = 64  # entries of the model's own cache, which is not used
_SHARES = ("1/2", "1/4", "1/8")
_KEPT = "rows.jsonl"  # in the folder of the report: rows as they are made


@dataclass(frozen=True, slots=True)
class Job:
    """What one row measures. kv_dtype: None is the engine's exact type; share: None where the policy has a budget."""

    kv_dtype: str | None
    policy: str
    share: str | None

    def described(self) -> str:
        return " ".join(x for x in (self.policy, "" if self.policy == FULL else self.share, self.kv_dtype) if x)


def bench_cache(
    model: str,
    *,
    policies: list[str],
    shares: list[str],
    settings: Settings,
    text: Path | None,
    engine: str | None,
    kv_dtypes: list[str],
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure and show a table, each row as it is made; with `out`, go on with the rows that are kept there, and draw.

    policies: one that names a budget is measured once, as it is; the others at every share (1/2, 1/4, 1/8).
    kv_dtypes: types to store the cache in, each compared with the engine's exact one, which comes first.
    """
    require_plots(out)
    read_text(text)  # refuses before anything is loaded
    parts = [read_share(s) for s in shares or _SHARES]
    for name in policies:
        if name != FULL:
            policy_by_name(name)  # refuses before anything is loaded
    names = [n for n in policies if n != FULL] if policies else [*POLICIES, "chunk-snapkv"]
    sizes = [(n, str(s)) for s in parts for n in names if not names_budget(n)]
    if shares and not sizes:
        raise OptionError("--share sizes policies without a budget of their own, and none is given; leave it out.")
    wanted: list[tuple[str, str | None]] = [*sizes, *((n, None) for n in names if names_budget(n))]
    for stored in (None, *kv_dtypes):
        refuse_impossible(Wish(engine=engine, threads=threads, kv_dtype=stored).with_environment())
    measured = _Measured(out)
    types: list[str | None] = [None, *kv_dtypes]
    run = _Run(model, settings, text, threads, measured)
    try:
        for kv_dtype in types:
            here = wanted if kv_dtype is not None or not kv_dtypes else []
            run.measure(engine, kv_dtype, [Job(kv_dtype, *each) for each in here])
    finally:  # Ctrl-C, too: what was measured is shown
        if run.info is not None:
            report = run.report(run.info)
            print_json(report) if as_json else show(report)
    if out is not None:
        written = write_report(report, out)
        console().print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)


class _Measured:
    """Rows by what made them, in a file of one a line where there is a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / _KEPT
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        names = {field.name for field in fields(Row)}
        for row in _lines(self._path):
            if names <= row.keys():
                self._rows[row["made_by"], row["command"]] = row

    def find(self, made_by: str, command: str) -> dict[str, Any] | None:
        return self._rows.get((made_by, command))

    def add(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(for_json(asdict(row))))
        self._rows[row.made_by, row.command] = found
        if self._path is not None:
            text = "".join(json.dumps(kept) + "\n" for kept in self._rows.values())
            write_atomically(self._path, text.encode())
        return found


def _lines(path: Path | None) -> Iterator[dict[str, Any]]:
    """The objects in a file of one a line; what is damaged is left out. Raises OptionError."""
    if path is None or not path.exists():
        return
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {error}. Give --out another folder.") from None
    for text in lines:
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


class _Run:
    """All rows of one command, and why some cannot be had."""

    def __init__(
        self, model: str, settings: Settings, text: Path | None, threads: int | None, measured: _Measured
    ) -> None:
        self._model, self._settings, self._text, self._threads = model, settings, text, threads
        self._measured, self._exact = measured, ExactDistribution()
        self.info: ModelInfo | None = None
        self._rows: list[dict[str, Any]] = []
        self._refused: dict[str, str] = {}

    def measure(self, engine: str | None, kv_dtype: str | None, jobs: list[Job]) -> None:
        """The full cache, then the jobs. Rows that are kept are not measured again."""
        engine = engine if self.info is None else self.info.engine
        with LoadProgress() as progress:
            loaded = load(
                self._model, engine, draft=None, speculate=False, kv_dtype=kv_dtype, threads=self._threads,
                max_context=_OWN, progress=progress,
            )  # fmt: skip
        with loaded, _Display(len(jobs) + 1) as display:
            self.info = self.info or loaded.info
            bench = Bench(loaded, read_text(self._text), self._settings, self._exact, display.tell)
            made_by = f"{__version__} {loaded.info.digest[:16]} {loaded.info.engine_version} {loaded.info.settings}"
            try:
                for job in (Job(kv_dtype, FULL, "1"), *jobs):
                    display.begin(job.described())
                    try:
                        row = self._row(bench, job, loaded.info, made_by)
                    except AbilityError as error:
                        self._refused[job.policy] = str(with_way_out(error, loaded.info))
                        continue
                    self._rows.append(row)
                    display.show(line(row))
            finally:
                bench.close()

    def _row(self, bench: Bench, job: Job, info: ModelInfo, made_by: str) -> dict[str, Any]:
        command = self._command(job, info.engine)
        kept = self._measured.find(made_by, command)
        if job.policy == FULL:
            row = bench.full(job.kv_dtype, kept is None, command, made_by)  # read anew: others are compared with it
            return self._measured.add(row) if kept is None else kept
        if kept is not None:
            return kept
        share = None if job.share is None else Fraction(job.share)
        return self._measured.add(bench.row(job.kv_dtype, job.policy, share, command, made_by))

    def _command(self, job: Job, engine: str) -> str:
        """What measures this row alone."""
        s = self._settings
        parts = [
            f"pilotfish bench cache {self._model} --engine {engine} --length {s.length} --predicted {s.predicted}",
            f"--needle-lengths {','.join(map(str, s.needle_lengths)) or repr('')} --depths {s.depths} --keys {s.keys}",
        ]
        optional = {"--text": self._text, "--kv-dtype": job.kv_dtype, "--threads": self._threads}
        parts += [f"{name} {value}" for name, value in optional.items() if value is not None]
        parts.append(
            f"--policy {job.policy}" + ("" if job.policy == FULL or not job.share else f" --share {job.share}")
        )
        return " ".join(parts)

    def report(self, info: ModelInfo) -> dict[str, Any]:
        """Everything measured, as plain data."""
        return {
            "pilotfish": __version__,
            "machine": machine.describe(),
            "date": time.strftime("%Y-%m-%d"),
            "model": Path(self._model).name,
            "engine": f"{info.engine} {info.engine_version} {info.settings}".strip(),
            "threads": info.threads,
            "length": self._settings.length,
            "predicted": self._settings.predicted,
            "keys": self._settings.keys,
            "text": str(self._text) if self._text else "Python's language reference",
            "rows": self._rows,
            "refused": self._refused,
        }


class _Display:
    """What is being done, and every row as a line once it is made; on standard error."""

    def __init__(self, n_rows: int) -> None:
        counted = TextColumn("{task.completed} of {task.total} {task.description}")
        columns = (SpinnerColumn(), counted, TimeElapsedColumn())
        self._progress = bars(*columns)
        self._task = self._progress.add_task("", total=n_rows, completed=-1)
        self._name, self._ticker = "", Ticker()
        self.tell: Callable[[str], None] = self._tell

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def begin(self, name: str) -> None:
        self._name = name
        self._progress.update(self._task, advance=1, description=name)

    def _tell(self, what: str) -> None:
        said = f"{self._name}: {what}"
        self._progress.update(self._task, description=said)
        if not self._progress.console.is_terminal and self._ticker.due():
            self.show(said)

    def show(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)
