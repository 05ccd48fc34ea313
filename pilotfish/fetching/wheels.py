"""Downloads wheels from the user's own package index, without installing or importing anything.

pip says where a wheel lies, so that the user's index, mirrors and settings hold; the bytes are then fetched with range
requests, so that an interrupted download goes on where it stopped. Where that does not work (an index that wants a
login, a pip too old to say), pip downloads the wheel itself.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import DownloadError
from ..runtime.storage import disk_is_full, sha256_of, temporary_name

TIMEOUT_S = 30.0
ATTEMPTS = 5  # in a row that bring nothing

Arrived = Callable[[int], None]  # bytes of this wheel that are here


@dataclass(frozen=True, slots=True)
class Location:
    """Where an index says that a wheel lies."""

    url: str
    sha256: str | None


def locate(requirements: Sequence[str]) -> list[Location | None]:
    """Where each wheel lies, in the order of the requirements; None where pip cannot tell.

    Raises DownloadError where there is no pip, no network, or no such wheel.
    """
    options = ["--dry-run", "--ignore-installed", "--no-user", "--report", "-"]
    try:
        report = json.loads(_pip("install", *options, *_SHARED, *requirements))
    except _OldPipError:
        return [None] * len(requirements)
    found = {_normal(item["metadata"]["name"]): item["download_info"] for item in report["install"]}
    locations: list[Location | None] = []
    for requirement in requirements:
        info = found.get(_normal(requirement.partition("==")[0]))
        hashes = (info or {}).get("archive_info", {}).get("hashes", {})
        locations.append(Location(info["url"], hashes.get("sha256")) if info else None)
    return locations


def download(requirement: str, location: Location | None, path: Path, arrived: Arrived) -> None:
    """Fetch a wheel to `path`, going on with what `path` + ".part" holds.

    Raises DownloadError; OSError where it cannot be written. What has arrived by then stays in the part, for next time.
    """
    if location is not None:
        try:
            _download(location, path, arrived)
            return
        except OSError as error:
            if disk_is_full(error, path.parent):
                raise
        except http.client.HTTPException:
            pass
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        _pip("download", "--dest", folder, *_SHARED, requirement)
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise DownloadError(f"pip downloaded {len(wheels)} wheels for {requirement} instead of one.")
        wheels[0].replace(path)
    arrived(path.stat().st_size)


def _download(location: Location, path: Path, arrived: Arrived) -> None:
    part = path.with_name(path.name + ".part")
    own = temporary_name(part)  # while we write it nobody else may
    with contextlib.suppress(FileNotFoundError):
        part.replace(own)
    try:
        idle = 0
        before = -1
        while not _fetch_rest(location.url, own, arrived):
            size = own.stat().st_size if own.exists() else 0
            idle = 0 if size > before else idle + 1
            before = size
            if idle >= ATTEMPTS:
                raise DownloadError(f"the connection to {location.url} breaks again and again. Try again later.")
        if location.sha256 and sha256_of(own) != location.sha256:
            own.unlink()
            raise DownloadError(f"{path.name} arrived damaged and was deleted. Try again.")
        own.replace(path)
    finally:
        if own.exists():
            own.replace(part)


def _fetch_rest(url: str, path: Path, arrived: Arrived) -> bool:
    """Append what is missing. False where the connection ended before the file did."""
    have = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S, context=certificates())
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        path.unlink()  # longer than the file can be
        return False
    with response, path.open("ab") as file:
        if getattr(response, "status", None) != http.client.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        end = have + int(length) if length else None
        try:
            while block := response.read(1 << 18):
                file.write(block)
                have += len(block)
                arrived(have)
        except (http.client.IncompleteRead, ConnectionError, TimeoutError, ssl.SSLError):
            return False
    return end is None or have >= end


def certificates() -> ssl.SSLContext:
    """Those that downloads are checked against."""
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE"))
    if importlib.util.find_spec("certifi"):  # a Python from python.org comes without certificates on macOS
        import certifi

        context.load_verify_locations(certifi.where())
    return context


_SHARED = ("--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--disable-pip-version-check")


class _OldPipError(Exception):
    """pip does not know an option."""


def _pip(command: str, *arguments: str) -> str:
    """What pip prints. Raises DownloadError with pip's own reason."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError("this Python has no pip (`python -m ensurepip` adds it)")
    run = [sys.executable, "-m", "pip", command, "--retries", "2", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0:
        return done.stdout
    if "no such option" in done.stderr:
        raise _OldPipError
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    raise DownloadError(f"pip {command} failed: {errors[-1] if errors else done.stderr.strip()[-300:]}")


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
