"""A bundle whose graph leaves out blocks of another bundle's graph, over the same weights on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import onnx

from ...runtime.errors import UnsupportedModelError
from ...runtime.files.bundle import Bundle, Manifest, describe_files, write_manifest
from ...runtime.files.staging import new_bundle
from .layer_drop import sub_layers, without

_OBSERVING = "observing.onnx"


def write_dropped(bundle: Bundle, out: Path, skipped: Collection[int]) -> Path:
    """The folder `out`, a bundle of the ONNX graph of `bundle` without these blocks (indices into sub_layers).

    The data file is the same file under another name where the file system has hard links, else a copy.
    Raises UnsupportedModelError, OptionError where `out` is no bundle, CacheWriteError.
    """
    source = bundle.manifest
    if "onnx" not in source.formats:
        raise UnsupportedModelError(
            f"{bundle} holds {', '.join(source.formats)}; layers can be left out of the format onnx only. "
            "Export the model to it, or give a .gguf file."
        )
    name = source.formats["onnx"]
    model = onnx.load(bundle.file(name), load_external_data=False)
    blocks = sub_layers(model)
    graphs = {name: model}
    observing = str(Path(name).with_name(_OBSERVING).as_posix())
    if observing in source.files:
        graphs[observing] = onnx.load(bundle.file(observing), load_external_data=False)
    with new_bundle(out) as building:
        (building / name).parent.mkdir(parents=True, exist_ok=True)
        for file, graph in graphs.items():
            (building / file).write_bytes(without(graph, skipped).SerializeToString())
        places = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        shared = [str((Path(name).parent / place).as_posix()) for place in places]
        for file in (*shared, *(f for f in (source.tokenizer, source.license_file) if f)):
            link_or_copy(bundle.file(file), building / file)
        dropped = ", ".join(str(blocks[i]) for i in sorted(skipped))
        write_manifest(building, _manifest(source, building, dropped))
    return out


def _manifest(source: Manifest, folder: Path, dropped: str) -> Manifest:
    """The source's, without what is true of the whole model only."""
    kept = ("license", "license_file", "architecture", "context_length", "source", "tokenizer", "chat_template")
    facts = {key: getattr(source, key) for key in (*kept, "bos_id", "add_bos", "eos_ids")}
    return Manifest(
        **facts,
        model_id=f"{source.model_id} without some layers",
        files=describe_files(folder),
        formats={"onnx": source.formats["onnx"]},
        recipe={**source.recipe_of("onnx"), "dropped": dropped},
    )


def link_or_copy(source: Path, to: Path) -> None:
    """Make a file appear in a second place."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, to)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, to)
