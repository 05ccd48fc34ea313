"""Standard streams that are closed, full, without a reader or in a narrow encoding: one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("onnxruntime")
posix = pytest.mark.skipif(os.name == "nt", reason="a shell's redirections")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, module_cache: None) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)


def run(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'exec "{sys.executable}" -m pilotfish.apps.cli {line}'],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and words in lines[0], (done.returncode, done.stderr)


@posix
def test_a_closed_input_is_refused_where_it_is_read(tiny: Path) -> None:
    refused(run(f"chat {tiny} <&-"), "standard input is closed")
    refused(run(f"run {tiny} <&-"), "standard input is closed")
    assert run(f"inspect {tiny} <&-").returncode == 0
    refused(run(f"run {tiny} 0>/dev/null"), "standard input cannot be read")


@posix
def test_a_closed_output_is_refused_before_work(tiny: Path) -> None:
    for line in (f"run {tiny} hello -n 2", "doctor", "--help", "chat nowhere", f"inspect {tiny} --json"):
        refused(run(f"{line} >&-"), "standard output is closed")


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_output_is_said_in_one_line(tiny: Path) -> None:
    for line in ("run --help", f"inspect {tiny}", f"inspect {tiny} --json", "doctor"):
        refused(run(f"{line} >/dev/full"), "standard output cannot be written: No space left")
    refused(run(f"inspect {tiny} --json >/dev/full", PYTHONUNBUFFERED="1"), "standard output cannot be written")
    done = run(f"run {tiny} hello -n 2 >/dev/full")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "cannot be written" in done.stderr


@posix
def test_what_becomes_of_standard_error_changes_no_answer(tiny: Path) -> None:
    wanted = run(f"run {tiny} hello -n 4").stdout
    for where in ("2>&-", "2>/dev/full" if Path("/dev/full").exists() else "2>/dev/null"):
        done = run(f"run {tiny} hello -n 4 {where}")
        assert (done.returncode, done.stdout) == (0, wanted)
        assert run(f"run {tiny} hello --seed -1 -t 1 {where}").returncode == 2


@posix
def test_files_do_not_take_the_numbers_of_closed_streams(tiny: Path) -> None:
    code = (
        "import os\nfrom pilotfish.apps.streams import standard_streams\n"
        "try:\n with standard_streams(): pass\nexcept Exception: pass\n"
        f"raise SystemExit(os.open({str(tiny)!r}, os.O_RDONLY))"
    )
    done = subprocess.run(["bash", "-c", f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-', code], check=False)
    assert done.returncode > 2  # the number of the next file


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_encoding_without_the_characters_is_no_error(tiny: Path, encoding: str) -> None:
    said = {}
    for kind in ("utf-8", encoding):
        done = subprocess.run(
            [sys.executable, "-m", "pilotfish.apps.cli", "run", str(tiny), "日本語", "-n", "20", "--json"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": kind},
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        said[kind] = json.loads(done.stdout.decode(kind))["text"]
    assert said[encoding] == said["utf-8"] and not said["utf-8"].isascii()
    for line in (
        ["--help"],
        ["run", "--help"],
        ["bench", "cache", "-h"],
        ["doctor"],
        ["run", str(tiny), "日本語", "-n", "20"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pilotfish.apps.cli", *line],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
            timeout=120,
        )
        assert done.returncode == 0 and done.stdout.decode(encoding), done.stderr
        assert b"Traceback" not in done.stderr
