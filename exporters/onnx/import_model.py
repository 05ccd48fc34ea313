"""A model as it is stored as an ONNX bundle: made once, kept in the cache, keyed by what it was made from.

Two forms: "onnx" (docs/onnx-graph.md) for engines that take steps of any width, and "onnx-static" (docs/npu.md) for
devices that compile fixed shapes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, TypeAlias

from ...runtime.errors import EngineMissingError, ModelFileError, ModelNotFoundError
from ...runtime.files.bundle import Bundle, Manifest, Source, cache_dir, describe_files, open_bundle, write_manifest
from ...runtime.files.manifest import MANIFEST_NAME
from ...runtime.files.model_file import DecoderModel
from ...runtime.files.staging import new_bundle
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
    report = progress or (lambda what, share: None)
    digest = model.digest_of(lambda done, total: report("reading", 0.1 * done / max(total, 1)))
    made_by = f"{activations}-{BUILDER}" if form == "onnx" else f"static-{STATIC_BUILDER}"
    name = model.source_name.rpartition("/")[2].removesuffix(".gguf")
    folder = cache_dir() / "bundles" / f"{name}-{digest[:16]}-{made_by}"
    try:
        return open_bundle(folder)
    except (ModelNotFoundError, ModelFileError):  # not there, or damaged: built again
        _clear(folder)
    with new_bundle(folder) as building:
        _build(model, building, digest, activations, form, lambda share: report("converting", 0.1 + 0.9 * share))
    return open_bundle(folder)


def _clear(folder: Path) -> None:
    """Make room in the cache, where nothing is anybody's own: what lost its manifest would be kept as foreign."""
    if folder.is_dir() and not (folder / MANIFEST_NAME).is_file():
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_file():
        folder.unlink(missing_ok=True)


def _build(
    model: DecoderModel, folder: Path, digest: str, activations: Activations, form: Form, progress: Share
) -> None:
    try:
        from .decoder_graph import DecoderGraph
        from .fixed_shape_graph import StaticGraph
        from .stored_decoder import StoredDecoder
        from .writer import OnnxWriter
    except ImportError as error:
        raise EngineMissingError(
            f"converting a model needs the package {error.name}. Add it with: {install_command('onnx')}"
        ) from error
    tokenizer, source = model.tokenizer, StoredDecoder(model.file)
    types = sorted({t.type_name for t in model.file.tensors.values()})
    recipe = {"weights": "+".join(types), "n_heads": str(source.shape.n_heads)}
    with (folder / "model.onnx.data").open("wb") as data:
        writer = OnnxWriter(data, "model.onnx.data")
        if form == "onnx":
            recipe |= {"activations": activations, "builder": str(BUILDER)}
            if source.shape.window is not None:
                recipe["sliding_window"] = str(source.shape.window)
            DecoderGraph(writer, source.decoder(), _ACCURACY_LEVEL[activations]).build(lambda x: progress(0.9 * x))
        else:
            recipe |= {"builder": str(STATIC_BUILDER)}
            StaticGraph(writer, source.decoder()).build(lambda x: progress(0.9 * x))
    writer.save(folder / "model.onnx")
    if form == "onnx":
        writer.save(folder / "observing.onnx", observing=True)
    tokenizer.save(folder / "tokenizer.json")
    losses = {f"relative_loss.{name}": loss for name, loss in source.losses.items()}
    manifest = Manifest(
        model_id=model.model_id,
        license=model.license,
        architecture=source.shape.architecture,
        context_length=source.shape.context_length,
        source=Source(name=model.source_name, sha256=digest, format=model.source_format),
        files=describe_files(folder),
        formats={form: "model.onnx"},
        tokenizer="tokenizer.json",
        chat_template=model.chat_template,
        bos_id=tokenizer.bos_id,
        add_bos=tokenizer.add_bos,
        eos_ids=tokenizer.ordered_eos_ids,
        recipe=recipe,
        report={"requantized_tensors": float(len(losses)), **losses},
        suppress_tokens=model.suppress_tokens,
        begin_suppress_tokens=model.begin_suppress_tokens,
        generation=model.generation,
    )
    write_manifest(folder, manifest)
    progress(1.0)
