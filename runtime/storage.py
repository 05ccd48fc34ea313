"""The user's cache folder, and how small facts and digests are kept there from run to run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from .errors import CacheWriteError
from .progress import Counted


def cache_dir() -> Path:
    """The folder for everything that can be made or fetched again. PILOTFISH_CACHE overrides the user's default.

    Raises CacheWriteError where that names what is no folder.
    """
    configured = os.environ.get("PILOTFISH_CACHE")
    if configured and Path(configured).expanduser().exists() and not Path(configured).expanduser().is_dir():
        raise CacheWriteError(f"PILOTFISH_CACHE is {configured}, which is no folder. Set it to one, or unset it.")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("pilotfish", appauthor=False)


def file_digest(path: Path, progress: Counted | None = None) -> str:
    """The sha256 of a file, in hex; remembered in the cache for as long as its size and modification time stay."""
    stat = path.stat()
    fact = read_json(_digest_path(path))
    if isinstance(fact, dict) and [fact.get("bytes"), fact.get("mtime_ns")] == [stat.st_size, stat.st_mtime_ns]:
        digest = fact.get("sha256")
        if isinstance(digest, str):
            return digest
    digest = sha256_of(path, progress)
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):  # not while somebody writes it
        remember_digest(path, stat, digest)
    return digest


def sha256_of(path: Path, progress: Counted | None = None) -> str:
    """The sha256 of a file, in hex, computed."""
    total, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if progress:
                progress(done, total)
    return digest.hexdigest()


def _digest_path(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_dir() / "digests" / f"{name}.json"


def remember_digest(path: Path, stat: os.stat_result, digest: str) -> None:
    """Note the digest of a file that had these facts when it was read."""
    fact = {"path": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
    write_json_atomically(_digest_path(path), fact)


def read_json(path: Path) -> object | None:
    """What `write_json_atomically` put there. A missing or damaged file counts as absent: None."""
    try:
        value: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value


def write_json_atomically(path: Path, value: object) -> bool:
    """Whether a small fact could be stored. False for a full or read-only cache: a remembered fact only saves time."""
    data = json.dumps(value, allow_nan=False).encode()
    try:
        write_atomically(path, data)
    except CacheWriteError:
        return False
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, parent folders included. Raises CacheWriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [data])
    except OSError as error:
        raise write_error(path.parent, error) from error


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file whole or not at all: whenever the process ends, the name stands for the old file or for the new.

    Raises OSError.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Raise CacheWriteError where no file can be written into a folder, which may be new: asked before long work."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        probe = temporary_name(there / "writable")
        with probe.open("xb"):
            pass
        probe.unlink()
    except OSError as error:
        raise write_error(folder, error) from error


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that nobody else uses. (tempfile's files could be read by their owner alone.)"""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def disk_is_full(error: OSError, folder: Path) -> bool:
    """Whether an error comes from a lack of space."""
    if error.errno is not None:
        return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    if "free space" in str(error):  # numpy's tofile gives words instead of a number,
        return True
    with contextlib.suppress(OSError):  # or neither
        return shutil.disk_usage(folder).free < 1 << 20
    return False


def write_error(folder: Path, error: OSError) -> CacheWriteError:
    """The error to raise where something could not be written into a folder."""
    full = disk_is_full(error, folder)
    reason = "the disk is full" if full else error.strerror or str(error)
    here = "Free space there" if full else "See to it that it can be"
    in_cache = folder.absolute().is_relative_to(cache_dir().absolute())
    other = "set PILOTFISH_CACHE to another folder" if in_cache else "choose another folder"
    return CacheWriteError(f"{folder} cannot be written: {reason}. {here}, or {other}.")
