"""What is to be exported, and everything about it that can be refused before the long work."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import backends
from .exporters.parity import Parity
from .exporters.thresholds import Thresholds
from .exporters.weight_form import WeightForm
from .exporters.writers import FORMATS, DataAware, Order
from .opening import resolve
from .runtime.building import refuse_foreign
from .runtime.bundle import Bundle, open_bundle
from .runtime.errors import CacheWriteError, EngineMissingError, ModelFileError, ModelNotFoundError, OptionError
from .runtime.interfaces import Tokens
from .runtime.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from .exporters.model_source import ModelSource

_EXTRA = "pip install 'pilotfish[export]'"
_MARGIN = 1 << 26  # bytes that stay free on the disk


@dataclass(frozen=True, slots=True)
class Job:
    """One export, as asked for.

    form: None keeps the quantization of a .gguf source. min_agreement: instead of the default for such weights.
    calibration: text that data-aware methods look at. force: a bundle of another source may be replaced.
    draft: source of the smaller model that drafts.
    """

    source: str | os.PathLike[str]
    out: Path
    to: tuple[str, ...]
    form: WeightForm | None = field(default_factory=WeightForm)
    activations: Literal["int8", "f32"] = "int8"
    data_aware: tuple[DataAware, ...] = ()
    calibration: Path | None = None
    ratio: float = 1.0
    gguf_kind: str | None = None
    min_agreement: float | None = None
    force: bool = False
    draft: str | os.PathLike[str] | None = None

    def thresholds(self, form: str, rounding: Parity | None = None) -> Thresholds:
        """What a format has to keep to, given what rounding its weights costs by itself. Raises OptionError."""
        activations = self.activations if form == "onnx" else "int8"  # the other engines round them as they like
        return Thresholds.for_weights(self.form, activations, rounding, self.min_agreement)


def prepare(job: Job) -> tuple[ModelSource, Order, Bundle | None]:
    """The source, what to write, and the bundle at `out` whose other formats stay. Raises everything that can be known
    before the long work."""
    if not job.to:
        raise OptionError(f"no format to export to; choose from {', '.join(FORMATS)}.")
    for name in job.to:
        if name not in FORMATS:
            raise OptionError(f"there is no format {name!r} to export to; there are {', '.join(FORMATS)}.")
        _need_packages(name)
    job.thresholds(job.to[0])  # checks min_agreement
    refuse_foreign(job.out)
    source = open_job_source(job)
    if job.form is None and source.format != "gguf":
        raise OptionError("weights='source' is for .gguf files, whose weights are quantized; choose int4 or int8.")
    order = Order(
        form=job.form,
        activations=job.activations,
        data_aware=job.data_aware,
        samples=_samples(job, source),
        ratio=job.ratio,
        gguf_kind=job.gguf_kind,
    )
    for name in job.to:
        FORMATS[name].refuse(source, order)
    kept = _present(job, source)
    _need_space(job, source, order, kept)
    return source, order, kept


def open_job_source(job: Job) -> ModelSource:
    """The source, checked as far as headers go; a model of the catalogue is fetched. Raises what open_source raises."""
    from .exporters.catalogue import CATALOGUE
    from .exporters.sources import open_source

    if str(job.source) in CATALOGUE:
        return open_source(resolve(job.source))
    place = Path(job.source).expanduser()
    return open_source(place if place.exists() else str(job.source))


def _need_packages(name: str) -> None:
    wanted = FORMATS[name]
    for package in ("torch", "transformers", *wanted.packages):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # of a part of a package that is not there
            found = None
        if found is None:
            engine = backends.get(wanted.engine)
            way = engine.install if package == "llama_cpp" else _EXTRA
            raise EngineMissingError(f"exporting to {name} needs the package {package}. Add it with: {way}")
    engine = backends.get(wanted.engine)
    if engine.version() is None:
        raise EngineMissingError(
            f"an export to {name} is checked on the {engine.name} engine, which is not installed. Add it with: "
            f"{engine.install}"
        )


def _samples(job: Job, source: ModelSource) -> tuple[Tokens, ...]:
    """What data-aware methods look at: the user's text, or ours."""
    if not job.data_aware:
        if job.calibration is not None:
            raise OptionError("a calibration text is for data_aware methods only; name some, or leave it out.")
        return ()
    if "openvino" not in job.to:
        raise OptionError("data_aware methods are for the format openvino; add it, or leave them out.")
    from .exporters.calibration_text import calibration_samples

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


def _need_space(job: Job, source: ModelSource, order: Order, kept: Bundle | None) -> None:
    needed = sum(FORMATS[name].bytes_needed(source, order) for name in job.to) + _MARGIN
    if kept is not None:  # copied where the disk has no second names for a file
        needed += sum(fact.bytes for name, fact in kept.manifest.files.items() if format_of(name) not in job.to)
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
