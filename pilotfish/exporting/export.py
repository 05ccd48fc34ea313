"""export(): from a source to a checked bundle. Where exporters and engines meet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..exporters.export_spec import DataAware
from ..exporters.quantize.weight_form import Activations, Stored, weight_form
from ..runtime.errors import ParityError, PilotfishError
from ..runtime.files.bundle import Manifest, write_manifest
from ..runtime.files.generation_settings import warn_of
from ..runtime.files.staging import new_bundle
from ..runtime.progress import Progress
from ..runtime.several import several
from ..runtime.speculation.vocab_mapping import Pairing
from ..verifying.report import Report
from .checkpoint import is_of
from .draft import FOLDER, export_draft, measured, prepare_draft
from .job import Job
from .manifest import files_of
from .prepare import prepare
from .steps import Steps

__all__ = ["Job", "RefusedExportError", "export", "run"]


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str | Sequence[str] = "onnx",
    weights: Stored | Literal["source"] = "int4",
    embeddings: Stored | None = None,
    head: Stored | None = None,
    block: int = 32,
    symmetric: bool = False,
    activations: Activations = "int8",
    data_aware: DataAware | Sequence[DataAware] = (),
    calibration: str | os.PathLike[str] | None = None,
    ratio: float = 1.0,
    gguf_kind: str | None = None,
    draft: str | os.PathLike[str] | None = None,
    context: int | None = None,
    min_agreement: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The folder of a bundle with the model in these formats, each compared with its source before it is kept.

    source: a Hugging Face folder or hub id, or a .gguf file.
    to: of "onnx", "openvino", "gguf", and of the mobile pack "ort", "onnx-static", "qnn", "pte", "coreml"; "mobile" is
        its usual targets, as far as they can be made here. A bundle that is there already and has the same source
        keeps its other formats.
    weights, embeddings, head, block, symmetric: see WeightForm; "source" keeps the quantization of a .gguf file.
    activations: "f32" keeps those of ONNX graphs and OpenVINO models from being rounded to int8: closer, and slower.
        "static", of ONNX graphs with int8 weights: rounded to scales fitted to `calibration`; faster for several rows
        at once where matrices are narrow.
    data_aware: "awq", "scale", "gptq" for the int4 layers of OpenVINO, "gptq" for those of ONNX; they look at
        `calibration`, a text file, or at a text of our own.
    ratio: share of OpenVINO's int4 layers that become int4; the rest, the most sensitive, int8.
    gguf_kind: "Q4_K_M" and the like; the default follows `weights`.
    draft: source of a smaller model that drafts for this one; exported in the same way, into the same bundle.
    context: tokens that mobile programs with a cache of fixed size hold; the default is 1024.
    min_agreement: share of tokens on which export and source must agree, instead of the default for such weights.
    force: replace a bundle of another source.

    Raises RefusedExportError, a ParityError, where a format is too far from the source or fails: it is left out, and
    the bundle holds the others, where there are any (`kept`). Raises before any long work OptionError,
    ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, DownloadError, CacheWriteError.
    """
    job = Job(
        source=source,
        out=Path(out).expanduser(),
        to=several(to),
        form=weight_form(weights, embeddings, head, block, symmetric),
        activations=activations,
        data_aware=several(data_aware),
        calibration=None if calibration is None else Path(calibration).expanduser(),
        ratio=ratio,
        gguf_kind=gguf_kind,
        min_agreement=min_agreement,
        force=force,
        draft=draft,
        context=context,
    )
    return run(job, progress).folder


def run(job: Job, progress: Progress | None = None) -> Report:
    """The report of an export that was done: see export(). A RefusedExportError has it, too."""
    tell: Progress = progress or (lambda what, share: None)
    plan = prepare(job)
    warn_of(plan.source.generating.generation, plan.source.model_id)
    draft = None if job.draft is None else prepare_draft(job, plan)
    with new_bundle(job.out, take_over=lambda left: is_of(left, plan.source)) as building:
        steps = Steps(job, plan, building, tell)
        steps.write()
        steps.compare()
        steps.write_targets()
        manifest, report = steps.result()
        report = replace(report, folder=job.out)
        if not steps.made:
            raise _nothing_kept(report, list(steps.failed.values()))
        manifest = manifest.model_copy(update=steps.measured(manifest, report))
        write_manifest(building, manifest)
        if draft is not None:
            report = _add_draft(draft, building, manifest, report, tell)
        steps.forget()
    if not report.ok:
        raise RefusedExportError(report, tuple(manifest.formats))
    return report


def _add_draft(
    draft: tuple[Job, Pairing], building: Path, manifest: Manifest, report: Report, tell: Progress
) -> Report:
    """Export the draft into the bundle; one that fails is left out, and the report says why."""
    formats = tuple(one.form for one in report.formats if one.ok)
    if not formats:
        return replace(report, failed={**report.failed, "draft": "there is no format left that an engine opens."})
    try:
        entry = export_draft(*draft, formats, building, tell, run)
        manifest = manifest.model_copy(update={"draft": entry, "files": files_of(building)})
        write_manifest(building, manifest)
        entry = measured(entry, building, formats[0], tell)
    except PilotfishError as error:
        shutil.rmtree(building / FOLDER, ignore_errors=True)
        write_manifest(building, manifest.model_copy(update={"draft": None, "files": files_of(building)}))
        return replace(report, failed={**report.failed, "draft": str(error)})
    write_manifest(building, manifest.model_copy(update={"draft": entry}))
    return report


def _nothing_kept(report: Report, errors: list[Exception]) -> Exception:
    """The one error there was, or all that is wrong."""
    refused = [one for one in report.formats if not one.ok]
    return errors[0] if len(errors) == 1 and not refused else RefusedExportError(report, ())


class RefusedExportError(ParityError):
    """The report says what is wrong with each format. kept: the formats that the bundle holds now; without any, what
    was at its place is as it was."""

    def __init__(self, report: Report, kept: tuple[str, ...]) -> None:
        refused = [f"{r.form}: {', '.join(r.problems)}" for r in report.formats if not r.ok]
        said = []
        if refused:
            said.append(
                f"too far from its source and not kept: {'; '.join(refused)}. Choose weights of more bits, or accept "
                "less with --min-agreement (min_agreement=...)."
            )
        said += [f"{name} failed: {why}" for name, why in report.failed.items()]
        if kept:
            said.append(f"{report.folder} holds {', '.join(kept)}; the same command with another --to adds to it.")
        super().__init__(" ".join(said))
        self.report, self.kept = report, kept
