"""The formats a bundle can hold: what each needs, refuses and takes on disk, and who writes it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from ..runtime.decoder_shape import ARCHITECTURES
from ..runtime.errors import OptionError, UnsupportedModelError
from .gguf_t5 import FAMILIES, check_t5
from .model_source import ModelSource, Share
from .order import DataAware, Order, sizes, stored_bytes
from .seq2seq_onnx import UNHEARD
from .weight_form import Stored, WeightForm, as_they_come, check_activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .openvino_compress import Compression

_WHOLE = "unquantized.gguf"
_GGUF_BLOCK = 32
_GGUF_TYPES: dict[Stored, tuple[str, ...]] = {
    "fp32": ("F32",),
    "fp16": ("F16",),
    "int8": ("Q8_0",),
    "int4": ("Q4_0", "Q4_1"),
}


class Format(Protocol):
    """One format: written while the torch model is there, finished when its memory is free again."""

    engine: ClassVar[str]  # opens it, and answers for it
    packages: ClassVar[tuple[str, ...]]  # needed to write it, beside torch and transformers
    file: ClassVar[str]  # the one that is opened

    def refuse(self, source: ModelSource, order: Order) -> None:
        """Raise what writing would raise, before any long work."""
        ...

    def keeps(self, source: ModelSource, order: Order, recipe: Mapping[str, str]) -> bool:
        """Whether a GGUF file's own weights were taken over, so that none was rounded. recipe: what was written."""
        ...

    def bytes_needed(self, source: ModelSource, order: Order) -> int:
        """Bytes on disk at the worst moment, roughly."""
        ...

    def write(
        self, source: ModelSource, order: Order, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        """Write into the folder of the format and say how, as entries of the recipe. model: None where form is."""
        ...

    def finish(self, source: ModelSource, order: Order, folder: Path, progress: Share) -> dict[str, str]:
        """Do what needs no torch model; more entries of the recipe."""
        ...


class OnnxFormat:
    """The graph of docs/onnx-graph.md."""

    engine: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    file: ClassVar[str] = "onnx/model.onnx"

    def refuse(self, source: ModelSource, order: Order) -> None:
        check_activations(order.activations, order.form, order.samples)
        if order.activations == "static" and source.pair is not None and source.pair.source_kind == "audio":
            raise UnsupportedModelError(UNHEARD)

    def keeps(self, source: ModelSource, order: Order, recipe: Mapping[str, str]) -> bool:
        return order.form is None or (is_stored_so(source, order.form) and order.activations != "static")

    def bytes_needed(self, source: ModelSource, order: Order) -> int:
        return stored_bytes(source, order)

    def write(
        self, source: ModelSource, order: Order, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        if order.form is None or model is None or self.keeps(source, order, {}):
            return _import_as_is(source, order, folder, progress)
        from .hf_onnx import export_onnx
        from .seq2seq_onnx import export_seq2seq_onnx

        def tell(share: float, what: str) -> None:
            progress(share)

        if source.pair is not None:
            return export_seq2seq_onnx(
                model, folder, order.form, activations=order.activations, samples=order.samples, progress=tell
            )
        return export_onnx(
            model,
            folder,
            order.form,
            activations=order.activations,
            samples=order.samples if "gptq" in order.data_aware or order.activations == "static" else (),
            progress=tell,
        )

    def finish(self, source: ModelSource, order: Order, folder: Path, progress: Share) -> dict[str, str]:
        return {}


def is_stored_so(source: ModelSource, form: WeightForm) -> bool:
    """Whether a GGUF file holds its weights in this form already: its own blocks are nearer to it than any others.

    Rounding codes on one grid to another grid loses as much as rounding floats (SmolLM2 Q4_1, top-1 agreement with
    itself: 0.97 taken over, 0.76 rounded again).
    """
    if source.format != "gguf" or source.architecture not in ARCHITECTURES or form.block != _GGUF_BLOCK:
        return False
    from ..runtime.gguf_file import read_gguf

    tensors = read_gguf(source.path).tensors
    wanted = {"token_embd.weight": form.embedding_form, "output.weight": form.output_form}
    if "output.weight" not in tensors and form.output_form != form.embedding_form:
        return False
    return all(
        tensor.type_name in _GGUF_TYPES[wanted.get(name, form.layers)]
        and not (form.symmetric and tensor.type_name == "Q4_1")
        for name, tensor in tensors.items()
        if tensor.data.ndim > 1
    )


def _import_as_is(source: ModelSource, order: Order, folder: Path, progress: Share) -> dict[str, str]:
    """The GGUF file's own blocks as MatMulNBits, from the bundle that opening the file makes in the cache."""
    from ..runtime.bundle import open_bundle
    from .import_gguf import import_gguf

    made = open_bundle(
        import_gguf(source.path, activations=as_they_come(order.activations), progress=lambda share, _: progress(share))
    )
    for name in made.manifest.files:
        if name.startswith(("model.", "observing.")):
            shutil.copyfile(made.file(name), folder / name)
    fitted = {"data_aware": "none, the source's own blocks are taken over"} if "gptq" in order.data_aware else {}
    return {**made.manifest.recipe, **fitted}


class OpenVinoFormat:
    """A decoder IR with its past as state; of an encoder-decoder the two of docs/openvino.md."""

    engine: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "optimum.intel", "nncf")
    file: ClassVar[str] = "openvino/openvino_model.xml"

    def refuse(self, source: ModelSource, order: Order) -> None:
        form = order.form
        if form is None:
            raise UnsupportedModelError(
                "an OpenVINO IR has no place for a GGUF file's own quantization (weights: source), and the openvino "
                "engine opens the file itself: export to gguf instead, or choose the weights int8 or int4."
            )
        wanted = self._compression(order)
        if source.pair is not None:
            from .seq2seq_openvino import check_pair_columns

            check_pair_columns(dict(source.weights.shapes()), wanted)
            return
        for name, shape in source.weights.shapes().items():
            if len(shape) == 2:
                part = "embedding" if "embed_tokens" in name else "output" if "lm_head" in name else "layers"
                wanted.check_columns(part, shape[1], name)

    def keeps(self, source: ModelSource, order: Order, recipe: Mapping[str, str]) -> bool:
        return order.form is not None and is_stored_so(source, order.form) and recipe.get("own_grid") == "all"

    def bytes_needed(self, source: ModelSource, order: Order) -> int:
        return stored_bytes(source, order) + 4 * sum(sizes(source))  # what is traced is in f32

    def write(
        self, source: ModelSource, order: Order, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        from .hf_openvino import trace_openvino
        from .seq2seq_openvino import trace_seq2seq_openvino

        assert model is not None  # refuse() has seen to it
        trace = trace_openvino if source.pair is None else trace_seq2seq_openvino
        return trace(model, folder, self._compression(order)) | {"activations": as_they_come(order.activations)}

    def finish(self, source: ModelSource, order: Order, folder: Path, progress: Share) -> dict[str, str]:
        from .hf_openvino import compress_openvino
        from .seq2seq_openvino import compress_seq2seq_openvino

        made = compress_openvino if source.pair is None else compress_seq2seq_openvino
        return made(folder, self._compression(order), progress)

    @staticmethod
    def _compression(order: Order) -> Compression:
        from .openvino_compress import Compression

        assert order.form is not None
        return Compression(order.form, frozenset(order.data_aware), order.samples, order.ratio)


class GgufFormat:
    """One file for llama.cpp; whole first where its weights are to be quantized."""

    engine: ClassVar[str] = "llamacpp"
    packages: ClassVar[tuple[str, ...]] = ("gguf", "llama_cpp")
    file: ClassVar[str] = "gguf/model.gguf"

    def refuse(self, source: ModelSource, order: Order) -> None:
        if order.form is None and order.gguf_kind is not None:
            raise OptionError("weights='source' keeps the file's own types; gguf_kind has no place beside it.")
        if order.form is not None:
            from .gguf_quantize import KINDS

            if source.pair is not None:
                check_t5(source)
            if self._kind(source, order) not in KINDS:
                raise OptionError(f"there is no kind {order.gguf_kind!r} of GGUF file; there are {', '.join(KINDS)}.")

    def keeps(self, source: ModelSource, order: Order, recipe: Mapping[str, str]) -> bool:
        return order.form is None or (order.gguf_kind is None and is_stored_so(source, order.form))

    def bytes_needed(self, source: ModelSource, order: Order) -> int:
        if order.form is None:
            return source.path.stat().st_size
        return stored_bytes(source, order) + (4 if _has_f32(order.form) else 2) * sum(sizes(source))

    def write(
        self, source: ModelSource, order: Order, model: PreTrainedModel | None, folder: Path, progress: Share
    ) -> dict[str, str]:
        if order.form is None or model is None or self.keeps(source, order, {}):
            shutil.copyfile(source.path, folder / "model.gguf")
            return {"weights": "source"}
        from .gguf_writer import write_gguf

        stored: Literal["f32", "f16"] = "f32" if _has_f32(order.form) else "f16"
        write_gguf(source, model, folder / _WHOLE, stored=stored, progress=progress)
        return {"kind": self._kind(source, order)}

    def finish(self, source: ModelSource, order: Order, folder: Path, progress: Share) -> dict[str, str]:
        if order.form is None or self.keeps(source, order, {}):
            return {}
        from .gguf_quantize import quantize_gguf, table_types

        form, kind, whole = order.form, self._kind(source, order), folder / _WHOLE
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

    def _kind(self, source: ModelSource, order: Order) -> str:
        """The kind asked for, or the one that stands for the form."""
        from .gguf_quantize import kind_for

        assert order.form is not None
        return order.gguf_kind or kind_for(order.form, source.config())


def _has_f32(form: WeightForm) -> bool:
    return "fp32" in (form.layers, form.embedding_form, form.output_form)


def files_of_format(name: str, source: ModelSource) -> tuple[str, str | None]:
    """The file of a format that is opened, and that of its encoder, if it has one."""
    return (FORMATS[name].file, None) if source.pair is None else (_PAIRS[name][0], _PAIRS[name][1])


def refuse_pair(source: ModelSource, names: tuple[str, ...], data_aware: tuple[DataAware, ...]) -> None:
    """Raise UnsupportedModelError where an encoder-decoder is wanted in a way that is not built yet."""
    if source.pair is not None and data_aware:
        raise UnsupportedModelError(
            f"{source.path} holds an encoder-decoder ({source.architecture}), whose weights cannot be fitted to a text "
            f"yet: leave {', '.join(data_aware)} out."
        )
    possible = [name for name in _PAIRS if name != "gguf" or source.architecture in FAMILIES]
    wrong = [name for name in names if name not in possible]
    if source.pair is not None and wrong:
        raise UnsupportedModelError(
            f"{source.path} holds an encoder-decoder ({source.architecture}), which cannot be exported to "
            f"{', '.join(wrong)} yet. Formats that hold one: {', '.join(possible)}."
        )


_PAIRS = {
    "onnx": ("onnx/decoder.onnx", "onnx/encoder.onnx"),
    "openvino": ("openvino/decoder.xml", "openvino/encoder.xml"),
    "gguf": (GgufFormat.file, GgufFormat.file),
}
FORMATS: Mapping[str, Format] = {"onnx": OnnxFormat(), "openvino": OpenVinoFormat(), "gguf": GgufFormat()}


def pack_bytes_needed(name: str, source: ModelSource, order: Order) -> int:
    """Bytes on disk at the worst moment of writing a target of the mobile pack, roughly."""
    from .mobile import bytes_needed

    return bytes_needed(name, stored_bytes(source, order), sum(sizes(source)))
