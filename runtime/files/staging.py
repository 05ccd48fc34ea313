"""A bundle being built: under a temporary name, moved into place when it is whole, found again after a kill."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from ..errors import CacheWriteError, ModelFileError, ModelNotFoundError, OptionError
from ..storage import disk_is_full, remember_digest, require_writable, temporary_name, write_error
from .bundle import open_bundle, read_manifest
from .manifest import MANIFEST_NAME, Manifest

STALE_S = 24 * 3600.0  # a temporary folder this old belongs to a process that was killed


@contextlib.contextmanager
def new_bundle(folder: Path, take_over: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A temporary folder beside `folder` to build a bundle in; it takes the name `folder` at the end.

    take_over: asked about the folder that a killed process was building; where True, this one goes on with it.

    Write the files and, last, the manifest. Whatever goes wrong, Ctrl-C included, removes the temporary folder and
    leaves `folder` as it was. Of two processes that build the same bundle at once, both succeed and one's work stays.
    Raises CacheWriteError where the disk is full or the parent folder cannot be written, and OptionError where
    `folder` holds something that is not a bundle.
    """
    refuse_foreign(folder)
    building = _building_name(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        if not _claim_abandoned(folder, building, take_over):
            building.mkdir()
    except OSError as error:
        raise write_error(folder.parent, error) from error
    try:
        yield building
        manifest = read_manifest(building)
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


def refuse_foreign(folder: Path) -> None:
    """Raise OptionError where something that is not a bundle is in the way of one, CacheWriteError where none can be
    written."""
    if not folder.name:
        raise OptionError(
            f"a bundle cannot lie at {str(folder)!r}, which has no name of its own; choose another folder."
        )
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir():
        raise OptionError(f"{above} is a file, and {folder} cannot lie in it. Choose another folder.")
    if folder.is_file():
        raise OptionError(f"{folder} is a file; a bundle is a folder. Choose another name.")
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / MANIFEST_NAME).exists():
        raise OptionError(f"{folder} exists and is not a bundle. Choose another folder; this one would be replaced.")
    require_writable(folder.absolute().parent)


def _building_name(folder: Path) -> Path:
    """A temporary name that says which process of which machine builds there."""
    process = psutil.Process()
    owner = f"{_machine()}-{process.pid}-{int(process.create_time())}"
    return folder.with_name(f".{folder.name}.{owner}-{secrets.token_hex(4)}.tmp")


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_abandoned(path: Path, folder: Path) -> bool:
    """Whether a process of this machine that is gone was building there."""
    name = re.fullmatch(rf"\.{re.escape(folder.name)}\.([0-9a-f]{{8}})-(\d+)-(\d+)-[0-9a-f]+\.tmp", path.name)
    if name is None or name[1] != _machine():
        return False
    try:
        process = psutil.Process(int(name[2]))
        another = abs(process.create_time() - int(name[3])) > 2  # the number was given again
        return bool(another or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _claim_abandoned(folder: Path, building: Path, take_over: Callable[[Path], bool] | None) -> bool:
    """Whether the work of a killed process was taken over; what nobody takes over is removed."""
    taken = False
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        if not _is_abandoned(path, folder):
            continue
        claimed = building if not taken and take_over is not None and take_over(path) else temporary_name(folder)
        with contextlib.suppress(OSError):  # somebody else was faster
            path.rename(claimed)  # once it has our name, nobody else touches it
            taken |= claimed == building
        if claimed != building:
            shutil.rmtree(claimed, ignore_errors=True)
    return taken


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
    m = manifest
    return m.schema_version, m.source, m.recipe, m.formats, m.thresholds, m.draft


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
