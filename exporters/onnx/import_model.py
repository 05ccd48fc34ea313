"""A model as it is stored as an ONNX bundle: made once, kept in the cache, keyed by what it was made from.

Two forms: "onnx" (docs/onnx-graph.md) for engines that take steps of any width, and "onnx-static" (docs/npu.md) for
devices that compile fixed shapes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from ...runtime.errors import EngineMissingError
from ...runtime.files.bundle import Bundle
from ...runtime.files.decoder_file import DecoderFile
from ...runtime.files.made_bundle import made_once
from ...runtime.files.model_file import DecoderModel
from ...runtime.install import install_command
from ...runtime.progress import Progress, Share

Activations: TypeAlias = Literal["int8", "f32"]

Form: TypeAlias = Literal["onnx", "onnx-static"]

# Raise a number when that graph changes, so that older bundles are not taken for new ones.
BUILDER = 2
STATIC_BUILDER = 2
_ACCURACY_LEVEL = {"int8": 4, "f32": 0}  # of MatMulNBits


def import_model(
    model: DecoderModel,
    *,
    activations: Activations = "int8",
    form: Form = "onnx",
    progress: Progress | None = None,
) -> Bundle:
    """The bundle of a model: found in the cache, or built.

    activations: "int8" multiplies quantized weights with activations rounded to int8 per row and block, the fast
        path; "f32" keeps them in f32. In the form "onnx-static" that is the device's choice, not the graph's.
    form: which graph to build.
    progress: called with what is being done and the share done.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, and CacheWriteError where
    the disk is full; nothing half-written stays.
    """
    made_by = f"{activations}-{BUILDER}" if form == "onnx" else f"static-{STATIC_BUILDER}"
    return made_once(model, made_by, partial(_build, model.file, activations, form), progress)


def _build(file: DecoderFile, activations: Activations, form: Form, folder: Path, progress: Share) -> dict[str, object]:
    try:
        from .decoder_graph import DecoderGraph
        from .fixed_shape_graph import StaticGraph
        from .stored_decoder import StoredDecoder
        from .writer import OnnxWriter
    except ImportError as error:
        raise EngineMissingError(
            f"converting a model needs the package {error.name}. Add it with: {install_command('onnx')}"
        ) from error
    source = StoredDecoder(file)
    types = sorted({t.type_name for t in file.tensors.values()})
    recipe = {"weights": "+".join(types), "n_heads": str(source.shape.n_heads)}
    if source.shape.experts is not None:
        recipe["experts"] = f"{source.shape.experts.used} of {source.shape.experts.count}"
    with (folder / "model.onnx.data").open("wb") as data:
        writer = OnnxWriter(data, "model.onnx.data")
        if form == "onnx":
            recipe |= {"activations": activations, "builder": str(BUILDER)}
            if source.shape.window is not None:
                recipe["sliding_window"] = str(source.shape.window)
            DecoderGraph(writer, source.decoder(), _ACCURACY_LEVEL[activations]).build(progress)
        else:
            recipe |= {"builder": str(STATIC_BUILDER)}
            StaticGraph(writer, source.decoder()).build(progress)
    writer.save(folder / "model.onnx")
    if form == "onnx":
        writer.save(folder / "observing.onnx", observing=True)
    losses = {f"relative_loss.{name}": loss for name, loss in source.losses.items()}
    report = {"requantized_tensors": float(len(losses)), **losses}
    return {"formats": {form: "model.onnx"}, "recipe": recipe, "report": report}
