"""Bundles: a folder with weights, a tokenizer, and `pilotfish.json`, which says what they are and how to check them."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from ..errors import ModelFileError, ModelNotFoundError
from ..profiling.canary import Canary
from ..progress import Counted
from ..storage import cache_dir, file_digest, read_json, sha256_of, write_atomically, write_json_atomically
from ..text.tokenizer import Tokenizer
from .generation_settings import Generating
from .manifest import MANIFEST_NAME, SCHEMA_VERSION, DraftEntry, FileFact, GreedyAnswer, Manifest, Source
from .model_file import ModelFile

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Bundle",
    "DraftEntry",
    "FileFact",
    "GreedyAnswer",
    "Manifest",
    "Source",
    "cache_dir",
    "describe_files",
    "file_digest",
    "open_bundle",
    "read_json",
    "write_json_atomically",
    "write_manifest",
]


class Bundle(ModelFile):
    """An opened and checked bundle.

    digest: of the manifest as it is written, which holds the digests of everything else; read where it is not given.
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str | None = None) -> None:
        self._path, self.manifest, self._digest = path, manifest, digest

    @property
    def path(self) -> Path:
        return self._path

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(self.manifest.formats)

    @cached_property
    def digest(self) -> str:
        return self._digest or hashlib.sha256((self._path / MANIFEST_NAME).read_bytes()).hexdigest()

    @property
    def contents_digest(self) -> str:
        """Of graphs and weights together: two models may share a graph."""
        digests = (fact.sha256 for _, fact in sorted(self.manifest.files.items()))
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def context_length(self) -> int:
        return self.manifest.context_length

    @property
    def hears(self) -> bool:
        return self.manifest.source_kind == "audio"

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.manifest.encoders)

    @property
    def chat_template(self) -> str | None:
        return self.manifest.chat_template

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return tuple(self._path / name for name in self.manifest.files)

    @property
    def canary(self) -> Canary | None:
        return self.manifest.canary

    @property
    def draft_entry(self) -> DraftEntry | None:
        return self.manifest.draft

    @property
    def generating(self) -> Generating:
        said = self.manifest
        return Generating(said.suppress_tokens, said.begin_suppress_tokens, said.generation)

    def file(self, name: str) -> Path:
        """The path of a listed file."""
        if name not in self.manifest.files:
            raise ModelFileError(f"{self} holds no {name}; it holds {', '.join(self.manifest.files)}.")
        return self._path / name

    def _read_tokenizer(self) -> Tokenizer:
        manifest = self.manifest
        if manifest.tokenizer is None:
            raise ModelFileError(f"{self} holds no tokenizer; build the bundle again from its source.")
        return Tokenizer.from_file(
            self.file(manifest.tokenizer), eos_ids=manifest.eos_ids, bos_id=manifest.bos_id, add_bos=manifest.add_bos
        )


def open_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, with the size and the digest of every file checked.

    A digest is computed once and remembered by path, size and modification time. Raises ModelNotFoundError where
    there is no manifest and ModelFileError for anything that is not as the manifest says.
    """
    manifest, written = _read(folder)
    way_out = f"Delete {folder} and let Pilotfish build or fetch it again."
    inside = folder.resolve()
    for name, fact in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(inside):
            raise ModelFileError(f"{path} leads out of its bundle. {way_out}")
        try:
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                raise ModelFileError(f"{path} is missing. {way_out}")
            if size != fact.bytes:
                raise ModelFileError(f"{path} has {size} bytes instead of {fact.bytes}. {way_out}")
            digest = file_digest(path)
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
        if digest != fact.sha256:
            raise ModelFileError(f"{path} is damaged: its sha256 is {digest} instead of {fact.sha256}. {way_out}")
    return Bundle(folder, manifest, written)


def read_manifest(folder: Path) -> Manifest:
    """What `pilotfish.json` in a folder says; no file is looked at. Raises ModelNotFoundError and ModelFileError."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Manifest, str]:
    """The manifest in a folder, and the digest of its text."""
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
        value = json.loads(text)
    except FileNotFoundError:
        why = f"is not a bundle: it has no {MANIFEST_NAME}" if folder.exists() else "is not there"
        raise ModelNotFoundError(f"{folder} {why}.") from None
    except NotADirectoryError:
        raise ModelNotFoundError(f"{folder} is a file, and a bundle is a folder with {MANIFEST_NAME} in it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}.") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ModelFileError(
            f"{path} has schema version {version}, and this Pilotfish reads up to {SCHEMA_VERSION}. Upgrade Pilotfish."
        )
    try:
        return Manifest.model_validate(value), hashlib.sha256(text).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"{path} is not a manifest: {where + ': ' if where else ''}{first['msg']}.") from error


def describe_files(folder: Path, progress: Counted | None = None) -> dict[str, FileFact]:
    """Size and digest of every file in a folder but the manifest: `Manifest.files`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileFact(sha256=sha256_of(path, progress), bytes=path.stat().st_size)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `pilotfish.json`. Raises CacheWriteError."""
    write_atomically(folder / MANIFEST_NAME, (manifest.model_dump_json(indent=2) + "\n").encode())
