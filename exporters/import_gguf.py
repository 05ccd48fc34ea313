"""A GGUF file as a bundle that ONNX Runtime opens: made once, kept in the cache, keyed by what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from ..runtime.bundle import Manifest, Source, cache_dir, describe_files, new_bundle, open_bundle, write_manifest
from ..runtime.errors import EngineMissingError, ModelFileError, ModelNotFoundError
from ..runtime.gguf_file import GgufFile, read_gguf
from ..runtime.storage import file_digest
from ..runtime.tokenizer_gguf import tokenizer_from_gguf

Activations: TypeAlias = Literal["int8", "f32"]

BUILDER = 2  # raise it when the graph changes, so that older bundles are not taken for new ones
_ACCURACY_LEVEL = {"int8": 4, "f32": 0}  # of MatMulNBits


def import_gguf(
    path: Path,
    *,
    activations: Activations = "int8",
    progress: Callable[[float, str], None] | None = None,
) -> Path:
    """The bundle folder of a GGUF file: found in the cache, or built.

    activations: "int8" multiplies quantized weights with activations rounded to int8 per row and block, the fast
        path; "f32" keeps them in f32.
    progress: called with the share done and what is being done.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError, EngineMissingError, and CacheWriteError where
    the disk is full; nothing half-written stays.
    """
    report = progress or (lambda share, what: None)
    file = read_gguf(path)
    digest = file_digest(path, progress=lambda done, total: report(0.1 * done / max(total, 1), "reading"))
    folder = cache_dir() / "bundles" / f"{path.stem}-{digest[:16]}-{activations}-{BUILDER}"
    try:
        return open_bundle(folder).folder
    except (ModelNotFoundError, ModelFileError):  # not there, or damaged: built again
        pass
    with new_bundle(folder) as building:
        _build(file, building, digest, activations, lambda share: report(0.1 + 0.9 * share, "converting"))
    return folder


def _build(
    file: GgufFile, folder: Path, digest: str, activations: Activations, progress: Callable[[float], None]
) -> None:
    try:
        from .gguf_decoder import GgufDecoder
        from .onnx_graph import DecoderGraph
        from .onnx_writer import OnnxWriter
    except ImportError as error:
        raise EngineMissingError(
            f"converting a GGUF file needs the package {error.name}. Add it with: pip install 'pilotfish[onnx]'"
        ) from error
    source = GgufDecoder(file)
    tokenizer = tokenizer_from_gguf(file.metadata)
    with (folder / "model.onnx.data").open("wb") as data:
        writer = OnnxWriter(data, "model.onnx.data")
        DecoderGraph(writer, source.decoder(), _ACCURACY_LEVEL[activations]).build(lambda share: progress(0.9 * share))
    writer.save(folder / "model.onnx")
    writer.save(folder / "observing.onnx", observing=True)
    tokenizer.save(folder / "tokenizer.json")
    shape, types = source.shape, sorted({t.type_name for t in file.tensors.values()})
    template, license_name = file.metadata.get("tokenizer.chat_template"), file.metadata.get("general.license")
    report = {f"relative_loss.{name}": loss for name, loss in source.losses.items()}
    manifest = Manifest(
        model_id=str(file.metadata.get("general.name") or file.path.stem),
        license=license_name if isinstance(license_name, str) else None,
        architecture=shape.architecture,
        context_length=shape.context_length,
        source=Source(name=file.path.name, sha256=digest, format="gguf"),
        files=describe_files(folder),
        formats={"onnx": "model.onnx"},
        tokenizer="tokenizer.json",
        chat_template=template if isinstance(template, str) else None,
        bos_id=tokenizer.bos_id,
        add_bos=tokenizer.add_bos,
        eos_ids=tokenizer.ordered_eos_ids,
        recipe={
            "weights": "+".join(types),
            "activations": activations,
            "builder": str(BUILDER),
            "n_heads": str(shape.n_heads),
        },
        report={"requantized_tensors": float(len(source.losses)), **report},
    )
    write_manifest(folder, manifest)
    progress(1.0)
