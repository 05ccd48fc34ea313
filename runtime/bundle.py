"""Bundles: a folder with weights, a tokenizer, and `pilotfish.json`, which says what they are and how to check them."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from .errors import CacheWriteError, ModelFileError, ModelNotFoundError, OptionError
from .manifest import MANIFEST_NAME, SCHEMA_VERSION, DraftEntry, FileFact, GreedyAnswer, Manifest, Source
from .storage import (
    Progress,
    cache_dir,
    disk_is_full,
    file_digest,
    read_json,
    remember_digest,
    sha256_of,
    temporary_name,
    write_atomically,
    write_error,
    write_json_atomically,
)

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Bundle",
    "DraftEntry",
    "FileFact",
    "GreedyAnswer",
    "Manifest",
    "Progress",
    "Source",
    "cache_dir",
    "describe_files",
    "file_digest",
    "new_bundle",
    "open_bundle",
    "read_json",
    "write_json_atomically",
    "write_manifest",
]

STALE_S = 24 * 3600.0  # a temporary folder this old belongs to a process that was killed

@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened and checked bundle."""

    folder: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a listed file."""
        if name not in self.manifest.files:
            raise ModelFileError(f"{self.folder} holds no {name}; it holds {', '.join(self.manifest.files)}.")
        return self.folder / name


def open_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, with the size and the digest of every file checked.

    A digest is computed once and remembered by path, size and modification time. Raises ModelNotFoundError where
    there is no manifest and ModelFileError for anything that is not as the manifest says.
    """
    manifest = _read_manifest(folder)
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
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFoundError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}.") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ModelFileError(
            f"{path} has schema version {version}, and this Pilotfish reads up to {SCHEMA_VERSION}. Upgrade Pilotfish."
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"{path} is not a manifest: {where + ': ' if where else ''}{first['msg']}.") from error


def describe_files(folder: Path, progress: Progress | None = None) -> dict[str, FileFact]:
    """Size and digest of every file in a folder but the manifest: `Manifest.files`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)
    return {
        path.relative_to(folder).as_posix(): FileFact(sha256=sha256_of(path, progress), bytes=path.stat().st_size)
        for path in paths
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `pilotfish.json`. Raises CacheWriteError."""
    write_atomically(folder / MANIFEST_NAME, (manifest.model_dump_json(indent=2) + "\n").encode())


@contextlib.contextmanager
def new_bundle(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to build a bundle in; it takes the name `folder` at the end.

    Write the files and, last, the manifest. Whatever goes wrong, Ctrl-C included, removes the temporary folder and
    leaves `folder` as it was. Of two processes that build the same bundle at once, both succeed and one's work stays.
    Raises CacheWriteError where the disk is full or the parent folder cannot be written, and OptionError where
    `folder` holds something that is not a bundle.
    """
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / MANIFEST_NAME).exists():
        raise OptionError(f"{folder} exists and is not a bundle. Choose another folder; this one would be replaced.")
    building = temporary_name(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        building.mkdir()
    except OSError as error:
        raise write_error(folder.parent, error) from error
    try:
        yield building
        manifest = _read_manifest(building)
        _sync_folder(building)
        stats = {name: (building / name).stat() for name in manifest.files}
        moved = _move_into_place(building, folder, manifest)
    except OSError as error:
        if disk_is_full(error, folder.parent) or error.errno in (errno.EROFS, errno.EFBIG):
            raise write_error(folder.parent, error) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for name, fact in manifest.files.items() if moved else ():  # hashed a moment ago under the temporary name
        remember_digest(folder / name, stats[name], fact.sha256)


def _move_into_place(building: Path, folder: Path, manifest: Manifest) -> bool:
    """Whether the new folder was moved; False where an equal one was there already."""
    for _ in range(10):  # somebody else may put theirs there between our look and our rename
        try:
            present = open_bundle(folder).manifest
        except (ModelFileError, ModelNotFoundError):
            present = None
        if present and _identity(present) == _identity(manifest):
            return False
        outdated = temporary_name(folder)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(outdated)
        try:
            building.rename(folder)
        except OSError:
            if folder.exists():
                continue
            with contextlib.suppress(FileNotFoundError):
                outdated.rename(folder)
            raise
        finally:
            shutil.rmtree(outdated, ignore_errors=True)
        _sync_path(folder.parent)
        return True
    raise CacheWriteError(f"{folder} is being replaced by other programs all the time. Try again when they are done.")


def _identity(manifest: Manifest) -> object:
    return manifest.schema_version, manifest.source, manifest.recipe, manifest.formats


def _remove_stale(folder: Path) -> None:
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+" if os.name == "nt" else "rb") as file:  # Windows syncs only what may be written
                os.fsync(file.fileno())
    _sync_path(folder)


def _sync_path(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
