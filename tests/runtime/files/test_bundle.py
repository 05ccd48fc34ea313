"""Bundles and the facts kept in the cache folder: what is trusted, and what a failure leaves behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import fill
from pydantic import ValidationError

from pilotfish.runtime import storage
from pilotfish.runtime.errors import CacheWriteError, ModelFileError, ModelNotFoundError, OptionError
from pilotfish.runtime.files.bundle import (
    MANIFEST_NAME,
    cache_dir,
    file_digest,
    open_bundle,
    read_json,
    write_json_atomically,
)
from pilotfish.runtime.files.staging import new_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with new_bundle(tmp_path / "models" / "tiny") as building:
        fill(building)
    return tmp_path / "models" / "tiny"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.eos_ids == (2, 7)
    assert opened.manifest.report == {"max_error": 1e-6}
    assert opened.file("model.onnx").read_bytes() == b"weights"
    assert names(bundle.parent) == ["tiny"]
    with pytest.raises(ModelFileError, match=r"holds no draft\.onnx"):
        opened.file("draft.onnx")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=MANIFEST_NAME):
        open_bundle(tmp_path)
    with pytest.raises(ModelNotFoundError, match="is not there"):
        open_bundle(tmp_path / "no")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), r"model\.onnx is missing"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"weigh"), "has 5 bytes instead of 7"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"weighty"), "is damaged"),
        (lambda folder: (folder / MANIFEST_NAME).write_bytes(b'{"a":'), "cannot be read as JSON"),
        (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"[" * 100_000), "cannot be read as JSON"),
        (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"[]"), "is not a manifest"),
        (lambda folder: edit(folder, schema_version=2, new_field=1), "schema version 2.*Upgrade"),
        (lambda folder: edit(folder, new_field=1), "new_field: Extra inputs"),
        (lambda folder: edit(folder, formats={"onnx": "other.onnx"}), "not listed under files"),
    ],
)
def test_damage_is_found(bundle: Path, damage: object, message: str) -> None:
    assert callable(damage)
    open_bundle(bundle)
    damage(bundle)
    with pytest.raises(ModelFileError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "C:\\x", "..\\outside", "C:x", "", "."])
def test_paths_stay_inside(bundle: Path, name: str) -> None:
    edit(bundle, files={name: {"sha256": "0" * 64, "bytes": 1}}, formats={}, tokenizer=None)
    with pytest.raises(ModelFileError, match="not a path inside"):
        open_bundle(bundle)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege there")
def test_links_stay_inside(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle.parent / "outside")
    (bundle / "model.onnx").symlink_to(bundle.parent / "outside")
    with pytest.raises(ModelFileError, match="leads out"):
        open_bundle(bundle)


def test_a_report_holds_finite_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        fill(tmp_path, report={"max_error": float("nan")})


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("no"), OSError(errno.EACCES, "other file")])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)), new_bundle(tmp_path / "models" / "tiny") as building:
        fill(building)
        raise failure
    assert names(tmp_path / "models") == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("8 requested, 0 written")])
def test_disk_full(bundle: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    usage = storage.shutil.disk_usage(bundle)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(CacheWriteError, match="disk is full"), new_bundle(bundle) as building:
        (building / "model.onnx").write_bytes(b"wei")
        raise error
    assert names(bundle.parent) == ["tiny"]
    assert open_bundle(bundle).file("model.onnx").read_bytes() == b"weights"


def test_a_bundle_without_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError), new_bundle(tmp_path / "tiny") as building:
        (building / "model.onnx").write_bytes(b"weights")
    assert names(tmp_path) == []


def test_a_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    with pytest.raises(OptionError, match="not a bundle"), new_bundle(tmp_path / "photos"):
        pytest.fail("was let in")
    assert names(tmp_path / "photos") == ["1.jpg"]


def test_the_parent_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OptionError, match=r"is a file, and .* cannot lie in it"),
        new_bundle(tmp_path / "file" / "tiny"),
    ):
        pytest.fail("was let in")
    denied = PermissionError(errno.EACCES, "Permission denied")
    assert "or choose another folder" in str(storage.write_error(tmp_path / "models", denied))
    assert "or set PILOTFISH_CACHE" in str(storage.write_error(storage.cache_dir() / "bundles", denied))


def test_the_same_bundle_stays_and_another_replaces_it(bundle: Path) -> None:
    with new_bundle(bundle) as building:
        fill(building, b"weights of the second builder")
    assert open_bundle(bundle).file("model.onnx").read_bytes() == b"weights"
    with new_bundle(bundle) as building:
        fill(building, b"more", recipe={"quantization": "int4"})
    assert open_bundle(bundle).file("model.onnx").read_bytes() == b"more"
    (bundle / "model.onnx").write_bytes(b"damaged")
    with new_bundle(bundle) as building:
        fill(building, b"more", recipe={"quantization": "int4"})
    assert open_bundle(bundle).file("model.onnx").read_bytes() == b"more"
    assert names(bundle.parent) == ["tiny"]


def test_numpy_says_in_words_that_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(CacheWriteError, match="disk is full"), new_bundle(tmp_path / "tiny"):
        raise OSError("Not enough free space to write 20000000 bytes after offset 0")


def test_what_a_killed_process_left_is_removed_in_the_end(tmp_path: Path) -> None:
    old, new = tmp_path / ".tiny.old.tmp", tmp_path / ".tiny.new.tmp"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    with new_bundle(tmp_path / "tiny") as building:
        fill(building)
    assert names(tmp_path) == [".tiny.new.tmp", "tiny"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pilotfish.runtime.files.staging import new_bundle
with new_bundle(Path(sys.argv[1])) as building:
    (building / "model.onnx").write_bytes(sys.argv[2].encode())
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
@pytest.mark.parametrize("taken", [True, False])
def test_the_work_of_a_killed_process_is_taken_over_or_removed(tmp_path: Path, taken: bool) -> None:
    folder, asked = tmp_path / "tiny", list[bytes]()

    def ask(left: Path) -> bool:
        asked.append((left / "model.onnx").read_bytes())
        return taken

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for content in ("one", "two"):
        command = [sys.executable, "-c", KILLED, str(folder), content]
        assert subprocess.run(command, env=environment, check=False).returncode == -9
        assert not folder.exists() and len(names(tmp_path)) == 1  # what "one" left, "two" removed
    with new_bundle(folder, take_over=ask) as building:
        assert [p.name for p in building.iterdir()] == (["model.onnx"] if taken else [])
        fill(building)
    assert asked == [b"two"] and names(tmp_path) == ["tiny"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_killed_process_that_nobody_has_waited_for_is_gone_too(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "tiny"), "one"], env=environment) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it has ended, leaving it as it is
        with new_bundle(tmp_path / "tiny", take_over=lambda left: True) as building:
            assert [p.name for p in building.iterdir()] == ["model.onnx"]
            fill(building)
    assert names(tmp_path) == ["tiny"]


def test_what_a_living_process_builds_is_left_alone(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "tiny") as one, new_bundle(tmp_path / "tiny", take_over=lambda left: True) as other:
        assert one != other and one.exists()
        fill(one)
        fill(other)
    assert names(tmp_path) == ["tiny"]


def test_a_recipe_by_format(tmp_path: Path) -> None:
    recipe = {"weights": "int4", "n_heads": "3", "gguf.weights": "Q4_0", "general.note": "plain"}
    (tmp_path / "b.gguf").write_bytes(b"g")
    manifest = fill(tmp_path, recipe=recipe, formats={"onnx": "model.onnx", "gguf": "b.gguf"})
    assert manifest.recipe_of("onnx") == {"weights": "int4", "n_heads": "3", "general.note": "plain"}
    assert manifest.recipe_of("gguf") == {"weights": "Q4_0"}


@pytest.mark.parametrize(
    "changes",
    [
        {"reports": {"gguf": {"kl": 0.1}}},
        {"thresholds": {"gguf": {"kl": 0.1}}},
        {"unverified": ["gguf"]},
        {"answers": "answers.npz"},
        {"license_file": "LICENSE"},
        {"draft": {"path": "draft", "model_id": "x", "pairing": "mapped", "n_shared": 1, "token_map": "map.npz"}},
    ],
)
def test_what_is_reported_on_is_there(bundle: Path, changes: dict[str, object]) -> None:
    edit(bundle, **changes)
    with pytest.raises(ModelFileError, match="not listed under"):
        open_bundle(bundle)


BUILDER = """
import sys
from pathlib import Path
from builders import fill
from pilotfish.runtime.files.staging import new_bundle
from pilotfish.runtime.files.bundle import open_bundle
for i in range(30):
    folder = Path(sys.argv[1]) / f"tiny-{i}"
    with new_bundle(folder) as building:
        fill(building, b"weights" * (i + int(sys.argv[2])))
    open_bundle(folder)
"""


def test_processes_build_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "models")]
    builders = [
        subprocess.Popen([*command, number], env=environment, stderr=subprocess.PIPE, text=True) for number in "123"
    ]
    errors = [builder.communicate()[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], errors
    assert names(tmp_path / "models") == sorted(f"tiny-{i}" for i in range(30))


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    seen: list[tuple[int, int]] = []
    first = file_digest(path, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]
    assert file_digest(path, lambda *_: pytest.fail("was read again")) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_digest(path) != first
    for fact in (cache_dir() / "digests").iterdir():
        fact.write_bytes(b'{"bytes": 3')
    assert file_digest(path) == file_digest(path) != first


def test_small_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "fact.json"
    assert read_json(path) is None
    assert write_json_atomically(path, {"a": [1, 2.5]})
    assert read_json(path) == {"a": [1, 2.5]}
    for damage in (b"", b"\x00\xff", b'{"a": [1', b"[" * 100_000):
        path.write_bytes(damage)
        assert read_json(path) is None
    path.write_bytes(b"1")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    assert not write_json_atomically(path, 2)
    assert read_json(path) == 1
    assert names(path.parent) == ["fact.json"]
