"""The formats a bundle can hold: what each needs, refuses and takes on disk, and who writes it."""

from __future__ import annotations

from collections.abc import Mapping

from ..runtime.errors import UnsupportedModelError
from .export_spec import DataAware, ExportSpec, sizes, stored_bytes
from .format import Format
from .gguf.format import GgufFormat
from .openvino.format import OpenVinoFormat
from .sources.families import refuse_format
from .sources.model_source import ModelSource
from .torch_to_onnx.format import OnnxFormat

FORMATS: Mapping[str, Format] = {"onnx": OnnxFormat(), "openvino": OpenVinoFormat(), "gguf": GgufFormat()}


def readers_of(option: str) -> tuple[str, ...]:
    """The formats, and targets of the mobile pack, that look at an option of an export."""
    from .mobile.export import OPTIONS

    looks = {**{name: form.options for name, form in FORMATS.items()}, **OPTIONS}
    return tuple(name for name, options in looks.items() if option in options)


def files_of_format(name: str, source: ModelSource) -> tuple[str, str | None]:
    """The file of a format that is opened, and that of its encoder, if it has one."""
    form = FORMATS[name]
    return (form.file, None) if source.encoder_decoder is None else form.encoder_decoder_files


def refuse(name: str, source: ModelSource, spec: ExportSpec) -> None:
    """Raise what writing this format would raise, before any long work."""
    if source.encoder_decoder is None:
        refuse_format(source.architecture, name)
    FORMATS[name].refuse(source, spec)


def refuse_encoder_decoder(source: ModelSource, names: tuple[str, ...], data_aware: tuple[DataAware, ...]) -> None:
    """Raise UnsupportedModelError where an encoder-decoder is wanted in a way that is not built yet."""
    if source.encoder_decoder is not None and data_aware:
        raise UnsupportedModelError(
            f"{source.path} holds an encoder-decoder ({source.architecture}), whose weights cannot be fitted to a text "
            f"yet: leave {', '.join(data_aware)} out."
        )
    possible = [name for name, form in FORMATS.items() if source.architecture in form.encoder_decoders]
    wrong = [name for name in names if name not in possible]
    if source.encoder_decoder is not None and wrong:
        raise UnsupportedModelError(
            f"{source.path} holds an encoder-decoder ({source.architecture}), which cannot be exported to "
            f"{', '.join(wrong)} yet. Formats that hold one: {', '.join(possible)}."
        )


def pack_bytes_needed(name: str, source: ModelSource, spec: ExportSpec) -> int:
    """Bytes on disk at the worst moment of writing a target of the mobile pack, roughly."""
    from .mobile.export import bytes_needed

    return bytes_needed(name, stored_bytes(source, spec), sum(sizes(source)))
