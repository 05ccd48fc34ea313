"""What is to be exported, and everything about it that can be refused before the long work."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import backends
from .export_options import refuse_unused
from .exporters.mobile import DEFAULT_TARGETS, TARGETS
from .exporters.order import DataAware, Order
from .exporters.parity import Parity
from .exporters.thresholds import Thresholds
from .exporters.weight_form import Activations, WeightForm
from .exporters.writers import FORMATS, pack_bytes_needed, refuse_pair
from .opening import resolve, source_place
from .runtime.building import refuse_foreign
from .runtime.bundle import Bundle, open_bundle
from .runtime.checks import real, whole
from .runtime.errors import (
    CacheWriteError,
    EngineMissingError,
    ModelFileError,
    ModelNotFoundError,
    OptionError,
    UnsupportedModelError,
)
from .runtime.interfaces import Tokens
from .runtime.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from .exporters.model_source import ModelSource

_EXTRA = "pip install 'pilotfish[export]'"
_MARGIN = 1 << 26  # bytes that stay free on the disk
_CONTEXT = 1024  # tokens that a mobile program holds
MOBILE = "mobile"  # the usual targets of the mobile pack, as one name


@dataclass(frozen=True, slots=True)
class Job:
    """One export, as asked for.

    to: formats, targets of the mobile pack, or "mobile": the pack's usual targets, as far as they can be made here.
    form: None keeps the quantization of a .gguf source. min_agreement: instead of the default for such weights.
    calibration: text that data-aware methods and static activations look at. force: a bundle of another source may be
    replaced. draft: source of the smaller model that drafts. context: tokens that mobile programs with a cache of
    fixed size hold; None is 1024, or what the model holds.
    """

    source: str | os.PathLike[str]
    out: Path
    to: tuple[str, ...]
    form: WeightForm | None = field(default_factory=WeightForm)
    activations: Activations = "int8"
    data_aware: tuple[DataAware, ...] = ()
    calibration: Path | None = None
    ratio: float = 1.0
    gguf_kind: str | None = None
    min_agreement: float | None = None
    force: bool = False
    draft: str | os.PathLike[str] | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        real("ratio", self.ratio, "a share of the layers' weights, from 0 to 1", lambda x: 0 <= x <= 1)
        if self.context is not None:
            whole("context", self.context, 1, hint="tokens of a mobile program")
        self.thresholds("onnx")  # checks min_agreement

    def thresholds(self, form: str, rounding: Parity | None = None, *, kept: bool = False) -> Thresholds:
        """What a format has to keep to, given what rounding its weights costs by itself.

        kept: it has the source's own quantized weights, so that none was rounded. Raises OptionError.
        """
        activations = self.activations if form == "onnx" else "int8"  # the other engines round them as they like
        stored, rounding = (None, None) if kept else (self.form, rounding)
        return Thresholds.for_weights(stored, activations, rounding, self.min_agreement)


@dataclass(frozen=True, slots=True)
class Plan:
    """An export that can be made, as far as can be known before the long work.

    kept: the bundle at `out`, whose other formats stay. engines: formats that an engine opens and answers for.
    targets: of the mobile pack. optional: those of them that were not asked for by name. left_out: why others of
    these are missing.
    """

    source: ModelSource
    order: Order
    kept: Bundle | None
    engines: tuple[str, ...]
    targets: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def formats(self) -> tuple[str, ...]:
        """Everything that is to be written, in this order: a target may use what an engine's format left."""
        return self.engines + self.targets


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
    refuse_pair(source, job.to, job.data_aware)
    if job.form is None and source.format != "gguf":
        raise OptionError("weights='source' is for .gguf files, whose weights are quantized; choose int4 or int8.")
    order = Order(
        form=job.form,
        activations=job.activations,
        data_aware=job.data_aware,
        samples=_samples(job, source),
        ratio=job.ratio,
        gguf_kind=job.gguf_kind,
        context=_context(job, source),
    )
    for name in engines:
        FORMATS[name].refuse(source, order)
    targets, left_out = _possible_targets(job, source, order)
    kept = _present(job, source)
    plan = Plan(source, order, kept, engines, targets, frozenset(targets) - {*named}, left_out)
    _need_space(job, plan)
    return plan


def _require_source(source: str | os.PathLike[str]) -> None:
    """Raise where there can be no source: asked before packages, which nobody need install for that answer."""
    from .exporters.catalogue import CATALOGUE
    from .exporters.sources import require_source

    if str(source) not in CATALOGUE:
        require_source(source_place(source))


def open_job_source(job: Job) -> ModelSource:
    """The source, checked as far as headers go; a model of the catalogue is fetched. Raises what open_source raises."""
    from .exporters.catalogue import CATALOGUE
    from .exporters.sources import open_source

    if str(job.source) in CATALOGUE:
        return open_source(resolve(job.source))
    return open_source(source_place(job.source))


def _check_names(job: Job) -> None:
    if not job.to:
        raise OptionError(f"no format to export to; choose from {', '.join(FORMATS)} and {MOBILE}.")
    for name in job.to:
        if name != MOBILE and name not in FORMATS and name not in TARGETS:
            raise OptionError(
                f"there is no format {name!r} to export to; there are {', '.join(FORMATS)}, and {MOBILE}, or some of "
                f"it: {', '.join(TARGETS)}."
            )


def _possible_targets(job: Job, source: ModelSource, order: Order) -> tuple[tuple[str, ...], dict[str, str]]:
    """The targets of the mobile pack that can be made of this model here, and why others are left out.

    Raises EngineMissingError and UnsupportedModelError where one that was named cannot, or nothing of the pack can.
    """
    from .exporters.mobile import checked
    from .exporters.mobile_pack import Pack

    pack, left_out = Pack(source, order.form, context=order.context), dict[str, str]()
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
            way = backends.get("llamacpp").install if package == "llama_cpp" else _EXTRA
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
    from .runtime.calibration_text import calibration_samples

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
    needed = sum(FORMATS[name].bytes_needed(plan.source, plan.order) for name in plan.engines) + _MARGIN
    needed += sum(pack_bytes_needed(name, plan.source, plan.order) for name in plan.targets)
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


def format_of(name: str) -> str:
    """The format that a file of an exported bundle belongs to: its folder's name."""
    return name.split("/")[0]
