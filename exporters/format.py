"""What every format of an export has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..runtime.progress import Share
from .export_spec import DataAware, ExportSpec
from .sources.model_source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Format(Protocol):
    """One format: written while the torch model is there, finished when its memory is free again."""

    engine: ClassVar[str]  # opens it, and answers for it
    packages: ClassVar[tuple[str, ...]]  # needed to write it, beside torch and transformers
    file: ClassVar[str]  # the one that is opened
    options: ClassVar[frozenset[str]]  # of an export, by their names, that it looks at
    methods: ClassVar[tuple[DataAware, ...]]  # that fit weights to a text, which it has
    encoder_decoders: ClassVar[frozenset[str]]  # the families (model_type) of encoder-decoders that it holds
    encoder_decoder_files: ClassVar[tuple[str, str]]  # of an encoder-decoder: the one that is opened, its encoder's

    def refuse(self, source: ModelSource, spec: ExportSpec) -> None:
        """Raise what writing would raise, before any long work."""
        ...

    def keeps(self, source: ModelSource, spec: ExportSpec, recipe: Mapping[str, str]) -> bool:
        """Whether a GGUF file's own weights were taken over, so that none was rounded. recipe: what was written."""
        ...

    def bytes_needed(self, source: ModelSource, spec: ExportSpec) -> int:
        """Bytes on disk at the worst moment, roughly."""
        ...

    def write(
        self, source: ModelSource, spec: ExportSpec, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        """Write into the folder of the format and say how, as entries of the recipe. model: None where form is."""
        ...

    def finish(self, source: ModelSource, spec: ExportSpec, folder: Path, progress: Share) -> dict[str, str]:
        """Do what needs no torch model; more entries of the recipe."""
        ...
