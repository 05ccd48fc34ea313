"""ONNX as a format of an export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...runtime.errors import UnsupportedModelError
from ...runtime.progress import Share
from ..export_spec import DataAware, ExportSpec, stored_bytes
from ..gguf.stored_as import is_stored_so
from ..quantize.weight_form import as_they_come, check_activations
from ..sources.encoder_decoder_families import ENCODER_DECODERS
from ..sources.model_source import ModelSource
from .encoder_decoder import UNHEARD

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OnnxFormat:
    """The graph of docs/onnx-graph.md."""

    engine: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    file: ClassVar[str] = "onnx/model.onnx"
    options: ClassVar[frozenset[str]] = frozenset(
        {"embedding", "output", "symmetric", "draft", "min_agreement", "block", "activations", "data_aware"}
    )
    methods: ClassVar[tuple[DataAware, ...]] = ("gptq",)
    encoder_decoders: ClassVar[frozenset[str]] = frozenset(ENCODER_DECODERS)
    encoder_decoder_files: ClassVar[tuple[str, str]] = ("onnx/decoder.onnx", "onnx/encoder.onnx")

    def refuse(self, source: ModelSource, spec: ExportSpec) -> None:
        check_activations(spec.activations, spec.form, spec.samples)
        if (
            spec.activations == "static"
            and source.encoder_decoder is not None
            and source.encoder_decoder.source_kind == "audio"
        ):
            raise UnsupportedModelError(UNHEARD)

    def keeps(self, source: ModelSource, spec: ExportSpec, recipe: Mapping[str, str]) -> bool:
        return spec.form is None or (is_stored_so(source, spec.form) and spec.activations != "static")

    def bytes_needed(self, source: ModelSource, spec: ExportSpec) -> int:
        return stored_bytes(source, spec)

    def write(
        self, source: ModelSource, spec: ExportSpec, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        if spec.form is None or model is None or self.keeps(source, spec, {}):
            return _import_as_is(source, spec, folder, progress)
        from .decoder import export_onnx
        from .encoder_decoder import export_encoder_decoder_onnx

        def tell(what: str, share: float) -> None:
            progress(share)

        if source.encoder_decoder is not None:
            return export_encoder_decoder_onnx(
                model, folder, spec.form, activations=spec.activations, samples=spec.samples, progress=tell
            )
        return export_onnx(
            model,
            folder,
            spec.form,
            activations=spec.activations,
            samples=spec.samples if "gptq" in spec.data_aware or spec.activations == "static" else (),
            progress=tell,
        )

    def finish(self, source: ModelSource, spec: ExportSpec, folder: Path, progress: Share) -> dict[str, str]:
        return {}


def _import_as_is(source: ModelSource, spec: ExportSpec, folder: Path, progress: Share) -> dict[str, str]:
    """The GGUF file's own blocks as MatMulNBits, from the bundle that opening the file makes in the cache."""
    from ...runtime.files.gguf_model import GgufModel
    from ..onnx.import_model import import_model

    activations = as_they_come(spec.activations)
    made = import_model(GgufModel(source.path), activations=activations, progress=lambda _, share: progress(share))
    for name in made.manifest.files:
        if name.startswith(("model.", "observing.")):
            shutil.copyfile(made.file(name), folder / name)
    fitted = {"data_aware": "none, the source's own blocks are taken over"} if "gptq" in spec.data_aware else {}
    return {**made.manifest.recipe, **fitted}
