"""What is to be exported, and everything about it that can be refused before the long work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..exporters.export_spec import DataAware, ExportSpec
from ..exporters.parity.parity import Parity
from ..exporters.parity.thresholds import Thresholds
from ..exporters.quantize.weight_form import Activations, WeightForm
from ..loading.opening import require_hub_name, source_place
from ..runtime.checks import real, whole
from ..runtime.files.bundle import Bundle

if TYPE_CHECKING:
    from ..exporters.sources.model_source import ModelSource

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
    spec: ExportSpec
    kept: Bundle | None
    engines: tuple[str, ...]
    targets: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def formats(self) -> tuple[str, ...]:
        """Everything that is to be written, in this order: a target may use what an engine's format left."""
        return self.engines + self.targets


def _require_source(source: str | os.PathLike[str]) -> None:
    """Raise where there can be no source: asked before packages, which nobody need install for that answer."""
    from ..exporters.open_source import require_source
    from ..fetching.catalogue import NAMES

    if str(source) in NAMES:
        return
    place = source_place(source)
    if isinstance(place, str):
        require_hub_name(place)
    else:
        require_source(place)


def format_of(name: str) -> str:
    """The format that a file of an exported bundle belongs to: its folder's name."""
    return name.split("/")[0]
