"""OpenVINO's IR as a format of an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...runtime.errors import UnsupportedModelError
from ...runtime.progress import Share
from ..export_spec import DataAware, ExportSpec, sizes, stored_bytes
from ..gguf.stored_as import is_stored_so
from ..quantize.weight_form import as_they_come
from ..sources.encoder_decoder_families import ENCODER_DECODERS
from ..sources.model_source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .compress import Compression


class OpenVinoFormat:
    """A decoder IR with its past as state; of an encoder-decoder the two of docs/openvino.md."""

    engine: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "optimum.intel", "nncf")
    file: ClassVar[str] = "openvino/openvino_model.xml"
    options: ClassVar[frozenset[str]] = frozenset(
        {"embedding", "output", "symmetric", "draft", "min_agreement", "block", "activations", "data_aware", "ratio"}
    )
    methods: ClassVar[tuple[DataAware, ...]] = ("awq", "scale", "gptq")
    encoder_decoders: ClassVar[frozenset[str]] = frozenset(ENCODER_DECODERS)
    encoder_decoder_files: ClassVar[tuple[str, str]] = ("openvino/decoder.xml", "openvino/encoder.xml")

    def refuse(self, source: ModelSource, spec: ExportSpec) -> None:
        form = spec.form
        if form is None:
            raise UnsupportedModelError(
                "an OpenVINO IR has no place for a GGUF file's own quantization (weights: source), and the openvino "
                "engine opens the file itself: export to gguf instead, or choose the weights int8 or int4."
            )
        wanted = self._compression(spec)
        if source.encoder_decoder is not None:
            from .encoder_decoder import check_encoder_decoder_columns

            check_encoder_decoder_columns(dict(source.weights.shapes()), wanted)
            return
        for name, shape in source.weights.shapes().items():
            if len(shape) == 2:
                part = "embedding" if "embed_tokens" in name else "output" if "lm_head" in name else "layers"
                wanted.check_columns(part, shape[1], name)

    def keeps(self, source: ModelSource, spec: ExportSpec, recipe: Mapping[str, str]) -> bool:
        return spec.form is not None and is_stored_so(source, spec.form) and recipe.get("own_grid") == "all"

    def bytes_needed(self, source: ModelSource, spec: ExportSpec) -> int:
        return stored_bytes(source, spec) + 4 * sum(sizes(source))  # what is traced is in f32

    def write(
        self, source: ModelSource, spec: ExportSpec, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        from .decoder import trace_openvino
        from .encoder_decoder import trace_encoder_decoder_openvino

        assert model is not None  # refuse() has seen to it
        trace = trace_openvino if source.encoder_decoder is None else trace_encoder_decoder_openvino
        return trace(model, folder, self._compression(spec)) | {"activations": as_they_come(spec.activations)}

    def finish(self, source: ModelSource, spec: ExportSpec, folder: Path, progress: Share) -> dict[str, str]:
        from .decoder import compress_openvino
        from .encoder_decoder import compress_encoder_decoder_openvino

        made = compress_openvino if source.encoder_decoder is None else compress_encoder_decoder_openvino
        return made(folder, self._compression(spec), progress)

    @staticmethod
    def _compression(spec: ExportSpec) -> Compression:
        from .compress import Compression

        assert spec.form is not None
        return Compression(spec.form, frozenset(spec.data_aware), spec.samples, spec.ratio)
