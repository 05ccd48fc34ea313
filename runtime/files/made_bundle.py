"""Bundles that are made of a model once and kept in the cache, keyed by what they were made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from ..errors import ModelFileError, ModelNotFoundError
from ..progress import Progress, Share
from .bundle import Bundle, Manifest, Source, cache_dir, describe_files, open_bundle, write_manifest
from .decoder_shape import decoder_shape
from .manifest import MANIFEST_NAME
from .model_file import DecoderModel
from .staging import new_bundle

Build: TypeAlias = Callable[[Path, Share], Mapping[str, object]]
"""Writes files into a folder and says what is to stand in the manifest beside what the model itself says."""

_READING = 0.1  # of the time


def made_once(model: DecoderModel, made_by: str, build: Build, progress: Progress | None = None) -> Bundle:
    """The bundle that is made of a model: found in the cache, or built.

    made_by: names how, in a folder's name: what it makes is the same wherever that is the same.
    Raises what build raises, ModelFileError, and CacheWriteError where the disk is full; nothing half-written stays.
    """
    report = progress or (lambda what, share: None)
    digest = model.digest_of(lambda done, total: report("reading", _READING * done / max(total, 1)))
    name = model.source_name.rpartition("/")[2].removesuffix(".gguf")
    folder = cache_dir() / "bundles" / f"{name}-{digest[:16]}-{made_by}"
    try:
        return open_bundle(folder)
    except (ModelNotFoundError, ModelFileError):  # not there, or damaged: built again
        _clear(folder)
    with new_bundle(folder) as building:
        tokenizer, shape = model.tokenizer, decoder_shape(model.file)
        found = build(building, lambda share: report("converting", _READING + (0.99 - _READING) * share))
        tokenizer.save(building / "tokenizer.json")
        facts = {
            "model_id": model.model_id,
            "license": model.license,
            "architecture": shape.architecture,
            "context_length": shape.context_length,
            "source": Source(name=model.source_name, sha256=digest, format=model.source_format),
            "files": describe_files(building),
            "tokenizer": "tokenizer.json",
            "chat_template": model.chat_template,
            "bos_id": tokenizer.bos_id,
            "add_bos": tokenizer.add_bos,
            "eos_ids": tokenizer.ordered_eos_ids,
            "suppress_tokens": model.suppress_tokens,
            "begin_suppress_tokens": model.begin_suppress_tokens,
            "generation": model.generation,
        }
        write_manifest(building, Manifest.model_validate({**facts, **found}))
        report("converting", 1.0)
    return open_bundle(folder)


def _clear(folder: Path) -> None:
    """Make room in the cache, where nothing is anybody's own: what lost its manifest would be kept as foreign."""
    if folder.is_dir() and not (folder / MANIFEST_NAME).is_file():
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_file():
        folder.unlink(missing_ok=True)
