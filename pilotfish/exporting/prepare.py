"""What is checked and opened before an export begins."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import backends
from ..exporters.export_spec import ExportSpec
from ..exporters.formats import FORMATS, pack_bytes_needed, refuse, refuse_encoder_decoder
from ..exporters.mobile.export import DEFAULT_TARGETS, TARGETS
from ..loading.opening import source_folder
from ..runtime.errors import (
    CacheWriteError,
    EngineMissingError,
    ModelFileError,
    ModelNotFoundError,
    OptionError,
    UnsupportedModelError,
)
from ..runtime.files.bundle import Bundle, open_bundle
from ..runtime.files.manifest import MANIFEST_NAME
from ..runtime.files.staging import refuse_foreign
from ..runtime.install import install_command
from ..runtime.interfaces import Tokens
from .job import _CONTEXT, _MARGIN, MOBILE, Job, Plan, _require_source, format_of
from .options import refuse_unused

if TYPE_CHECKING:
    from ..exporters.sources.model_source import ModelSource


def prepare(job: Job) -> Plan:
    """What is to be done. Raises everything that can be known before the long work."""
    engines = tuple(name for name in job.to if name in FORMATS)
    named = tuple(name for name in job.to if name in TARGETS)
    _check_names(job)
    refuse_unused(job, (*job.to, *(DEFAULT_TARGETS if MOBILE in job.to else ())))
    refuse_foreign(job.out)
    for place in (job.source, *([] if job.draft is None else [job.draft])):
        _require_source(place)
    for name in engines:
        _need_packages(name, FORMATS[name].packages)
        _need_engine(name)
    if len(engines) < len(job.to):
        _need_packages(MOBILE, ())
    source = open_job_source(job)
    refuse_encoder_decoder(source, job.to, job.data_aware)
    if job.form is None and source.format != "gguf":
        raise OptionError("weights='source' is for .gguf files, whose weights are quantized; choose int4 or int8.")
    spec = ExportSpec(
        form=job.form,
        activations=job.activations,
        data_aware=job.data_aware,
        samples=_samples(job, source),
        ratio=job.ratio,
        gguf_kind=job.gguf_kind,
        context=_context(job, source),
    )
    for name in engines:
        refuse(name, source, spec)
    targets, left_out = _possible_targets(job, source, spec)
    kept = _present(job, source)
    plan = Plan(source, spec, kept, engines, targets, frozenset(targets) - {*named}, left_out)
    _need_space(job, plan)
    return plan


def open_job_source(job: Job) -> ModelSource:
    """The source, checked as far as headers go; a model of the catalogue is fetched. Raises what open_source raises."""
    from ..exporters.open_source import open_source

    return open_source(source_folder(job.source))


def _check_names(job: Job) -> None:
    if not job.to:
        raise OptionError(f"no format to export to; choose from {', '.join(FORMATS)} and {MOBILE}.")
    for name in job.to:
        if name != MOBILE and name not in FORMATS and name not in TARGETS:
            raise OptionError(
                f"there is no format {name!r} to export to; there are {', '.join(FORMATS)}, and {MOBILE}, or some of "
                f"it: {', '.join(TARGETS)}."
            )


def _possible_targets(job: Job, source: ModelSource, spec: ExportSpec) -> tuple[tuple[str, ...], dict[str, str]]:
    """The targets of the mobile pack that can be made of this model here, and why others are left out.

    Raises EngineMissingError and UnsupportedModelError where one that was named cannot, or nothing of the pack can.
    """
    from ..exporters.mobile.export import checked
    from ..exporters.mobile.pack import Pack

    pack, left_out = Pack(source, spec.form, context=spec.context), dict[str, str]()
    named = [name for name in job.to if name in TARGETS]
    for name in named:
        checked(name, pack)
    whole = [name for name in DEFAULT_TARGETS if name not in named] if MOBILE in job.to else []
    for name in whole:
        try:
            checked(name, pack)
        except (EngineMissingError, UnsupportedModelError) as error:
            left_out[name] = f"not written: {error}"
    possible = (*named, *(name for name in whole if name not in left_out))
    if not possible and whole:
        reasons = " ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UnsupportedModelError(f"nothing of the mobile pack can be made of this model here. {reasons}")
    return possible, left_out


def _context(job: Job, source: ModelSource) -> int:
    if job.context is None:
        return min(_CONTEXT, source.context_length)
    if job.context > source.context_length:
        raise OptionError(
            f"context is {job.context}, but this model was made for {source.context_length} tokens; choose no more."
        )
    return job.context


def _need_packages(name: str, packages: Sequence[str]) -> None:
    for package in ("torch", "transformers", *packages):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # of a part of a package that is not there
            found = None
        if found is None:
            way = backends.get("llamacpp").install if package == "llama_cpp" else install_command("export")
            raise EngineMissingError(f"exporting to {name} needs the package {package}. Add it with: {way}")


def _need_engine(name: str) -> None:
    engine = backends.get(FORMATS[name].engine)
    if engine.version() is None:
        raise EngineMissingError(
            f"an export to {name} is checked on the {engine.name} engine, which is not installed. Add it with: "
            f"{engine.install}"
        )
    backends.require(engine)


def _samples(job: Job, source: ModelSource) -> tuple[Tokens, ...]:
    """What data-aware methods and static activations look at: the user's text, or ours."""
    if not job.data_aware and job.activations != "static":
        return ()
    from ..runtime.text.calibration_text import calibration_samples

    return tuple(calibration_samples(source.tokenizer, job.calibration))


def _present(job: Job, source: ModelSource) -> Bundle | None:
    """The bundle at `out`, where some of its formats stay. Raises OptionError where it would be lost."""
    if not (job.out / MANIFEST_NAME).exists():
        return None
    way_out = "Choose another folder, or replace it with --force (force=True)."
    try:
        bundle = open_bundle(job.out)
    except (ModelFileError, ModelNotFoundError) as error:
        if job.force:
            return None
        raise OptionError(f"{job.out} holds a bundle that cannot be read: {error} {way_out}") from error
    if bundle.manifest.source.sha256 == source.sha256:
        return bundle
    if job.force:
        return None
    raise OptionError(f"{job.out} holds a bundle of another model, {bundle.manifest.source.name}. {way_out}")


def _need_space(job: Job, plan: Plan) -> None:
    needed = sum(FORMATS[name].bytes_needed(plan.source, plan.spec) for name in plan.engines) + _MARGIN
    needed += sum(pack_bytes_needed(name, plan.source, plan.spec) for name in plan.targets)
    if plan.kept is not None:  # copied where the disk has no second names for a file
        files = plan.kept.manifest.files.items()
        needed += sum(fact.bytes for name, fact in files if format_of(name) not in plan.formats)
    folder = job.out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CacheWriteError(
            f"{job.out} needs about {needed / 1e9:.1f} GB while it is made, and {free / 1e9:.1f} GB are free. Free "
            "space there, choose a folder on another disk, or fewer formats."
        )
