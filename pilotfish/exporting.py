"""export(): from a source to a checked bundle. Where exporters and engines meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .export_draft import export_draft, measured, prepare_draft
from .export_job import Job, prepare
from .export_steps import Steps, is_of
from .exporters.weight_form import Stored, WeightForm
from .exporters.writers import DataAware
from .opening import Progress
from .runtime.building import new_bundle
from .runtime.bundle import Bundle, write_manifest
from .runtime.errors import OptionError, ParityError
from .verifying import Report

__all__ = ["Job", "RefusedExportError", "export", "run"]


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Sequence[str] = ("onnx",),
    weights: Stored | Literal["source"] = "int4",
    embeddings: Stored | None = None,
    head: Stored | None = None,
    block: int = 32,
    symmetric: bool = False,
    activations: Literal["int8", "f32"] = "int8",
    data_aware: Sequence[DataAware] = (),
    calibration: str | os.PathLike[str] | None = None,
    ratio: float = 1.0,
    gguf_kind: str | None = None,
    draft: str | os.PathLike[str] | None = None,
    min_agreement: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The folder of a bundle with the model in these formats, each compared with its source before it is kept.

    source: a Hugging Face folder or hub id, or a .gguf file.
    to: of "onnx", "openvino", "gguf". A bundle that is there already and has the same source keeps its other formats.
    weights, embeddings, head, block, symmetric: see WeightForm; "source" keeps the quantization of a .gguf file.
    activations: "f32" keeps those of the ONNX graph from being rounded to int8: closer, and slower.
    data_aware: "awq", "scale", "gptq" for the int4 layers of OpenVINO; they look at `calibration`, a text file, or at
        a text of our own. ratio: share of these layers' weights that become int4; the rest, the most sensitive, int8.
    gguf_kind: "Q4_K_M" and the like; the default follows `weights`.
    draft: source of a smaller model that drafts for this one; exported in the same way, into the same bundle.
    min_agreement: share of tokens on which export and source must agree, instead of the default for such weights.
    force: replace a bundle of another source.

    Raises ParityError where a format is too far from the source, and before any long work OptionError,
    ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, DownloadError, CacheWriteError.
    """
    form = None
    if weights != "source":
        form = WeightForm(weights, embeddings, head, block, symmetric)
    elif embeddings or head:
        raise OptionError("weights='source' keeps every matrix as it is; embeddings and head have no place beside it.")
    job = Job(
        source=source,
        out=Path(out).expanduser(),
        to=tuple(to),
        form=form,
        activations=activations,
        data_aware=tuple(data_aware),
        calibration=None if calibration is None else Path(calibration).expanduser(),
        ratio=ratio,
        gguf_kind=gguf_kind,
        min_agreement=min_agreement,
        force=force,
        draft=draft,
    )
    return run(job, progress).folder


def run(job: Job, progress: Progress | None = None) -> Report:
    """The report of an export that was done: see export(). A refused one is the ParityError's `report`."""
    tell: Progress = progress or (lambda what, share: None)
    source, order, kept = prepare(job)
    draft = None if job.draft is None else prepare_draft(job, source.tokenizer)
    with new_bundle(job.out, take_over=lambda left: is_of(left, source)) as building:
        steps = Steps(job, source, order, building, tell)
        steps.write()
        manifest = steps.manifest(kept)
        write_manifest(building, manifest)
        report = steps.verify(Bundle(building, manifest))
        if not report.ok:
            raise RefusedExportError(replace(report, folder=job.out, seconds=steps.seconds))
        manifest = manifest.model_copy(update=steps.measured(manifest, report))
        write_manifest(building, manifest)
        if draft is not None:
            entry = export_draft(*draft, building, tell, run)
            manifest = manifest.model_copy(update={"draft": entry, "files": steps.files()})
            write_manifest(building, manifest)
            entry = measured(entry, building, job.to[0], tell)
            write_manifest(building, manifest.model_copy(update={"draft": entry}))
        steps.forget()
    return replace(report, folder=job.out, seconds=steps.seconds)


class RefusedExportError(ParityError):
    """The report says what is wrong with each format."""

    def __init__(self, report: Report) -> None:
        wrong = "; ".join(f"{r.form}: {', '.join(r.problems)}" for r in report.formats if not r.ok)
        super().__init__(
            f"the export is too far from its source and was not kept. {wrong}. Choose weights of more bits, or accept "
            "less with --min-agreement (min_agreement=...)."
        )
        self.report = report
