"""GGUF as a format of an export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ...runtime.errors import OptionError
from ...runtime.progress import Share
from ..export_spec import DataAware, ExportSpec, sizes, stored_bytes
from ..quantize.weight_form import WeightForm
from ..sources.model_source import ModelSource
from .metadata import metadata_of
from .stored_as import is_stored_so
from .t5 import FAMILIES, check_t5

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_WHOLE = "unquantized.gguf"


class GgufFormat:
    """One file for llama.cpp; whole first where its weights are to be quantized."""

    engine: ClassVar[str] = "llamacpp"
    packages: ClassVar[tuple[str, ...]] = ("gguf", "llama_cpp")
    file: ClassVar[str] = "gguf/model.gguf"
    options: ClassVar[frozenset[str]] = frozenset(
        {"embedding", "output", "symmetric", "draft", "min_agreement", "gguf_kind"}
    )
    methods: ClassVar[tuple[DataAware, ...]] = ()
    encoder_decoders: ClassVar[frozenset[str]] = frozenset(FAMILIES)
    encoder_decoder_files: ClassVar[tuple[str, str]] = (file, file)

    def refuse(self, source: ModelSource, spec: ExportSpec) -> None:
        if spec.form is None and spec.gguf_kind is not None:
            raise OptionError("weights='source' keeps the file's own types; gguf_kind has no place beside it.")
        if spec.form is not None:
            from .quantize import KINDS

            if source.encoder_decoder is not None:
                check_t5(source)
            elif not self.keeps(source, spec, {}):
                metadata_of(source, source.config())
            if self._kind(source, spec) not in KINDS:
                raise OptionError(f"there is no kind {spec.gguf_kind!r} of GGUF file; there are {', '.join(KINDS)}.")

    def keeps(self, source: ModelSource, spec: ExportSpec, recipe: Mapping[str, str]) -> bool:
        return spec.form is None or (spec.gguf_kind is None and is_stored_so(source, spec.form))

    def bytes_needed(self, source: ModelSource, spec: ExportSpec) -> int:
        if spec.form is None:
            return source.path.stat().st_size
        return stored_bytes(source, spec) + (4 if _has_f32(spec.form) else 2) * sum(sizes(source))

    def write(
        self, source: ModelSource, spec: ExportSpec, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        if spec.form is None or model is None or self.keeps(source, spec, {}):
            shutil.copyfile(source.path, folder / "model.gguf")
            return {"weights": "source"}
        from .writer import write_gguf

        stored: Literal["f32", "f16"] = "f32" if _has_f32(spec.form) else "f16"
        write_gguf(source, model, folder / _WHOLE, stored=stored, progress=progress)
        return {"kind": self._kind(source, spec)}

    def finish(self, source: ModelSource, spec: ExportSpec, folder: Path, progress: Share) -> dict[str, str]:
        if spec.form is None or self.keeps(source, spec, {}):
            return {}
        from .quantize import quantize_gguf, table_types

        form, kind, whole = spec.form, self._kind(source, spec), folder / _WHOLE
        tables = table_types(form)
        if {kind, *tables.values()} == {"F32" if _has_f32(form) else "F16"}:
            whole.rename(folder / "model.gguf")
            return {}
        types = quantize_gguf(
            whole,
            folder / "model.gguf",
            kind,
            embedding=tables["embedding"],
            output=tables["output"],
            progress=progress,
        )
        whole.unlink()
        return {"types": ", ".join(types)}

    def _kind(self, source: ModelSource, spec: ExportSpec) -> str:
        """The kind asked for, or the one that stands for the form."""
        from .quantize import kind_for

        assert spec.form is not None
        return spec.gguf_kind or kind_for(spec.form, source.config())


def _has_f32(form: WeightForm) -> bool:
    return "fp32" in (form.layers, form.embedding_form, form.output_form)
