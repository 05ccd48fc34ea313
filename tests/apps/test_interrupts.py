"""Ctrl-C, whenever it comes: exit code 130, at most one line, and no traceback."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = re.search(r'^pilotfish = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
assert COMMAND is not None
ENTRY = COMMAND[1]  # the module that the installed command starts


def ended(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["typer", "numpy", "jinja2", "pilotfish.apps.cli", "pilotfish.loading.opening"])
def test_ctrl_c_while_it_starts(module: str) -> None:
    done = ended(
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['pilotfish', 'run', 'none', 'hello']\n"
        f"from {ENTRY} import main\n"
        "main()"
    )
    assert done.returncode == 130 and done.stdout == "", (done.returncode, done.stderr)
    assert done.stderr in ("", "stopped\n")


def test_ctrl_c_that_meets_a_finalizer_is_not_lost() -> None:
    done = ended(
        "import signal, threading\n"
        "from pilotfish.apps import cli\n"
        f"from {ENTRY} import main\n"
        "class Freed:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "def answer():\n"
        "    Freed()\n"
        "    threading.Event().wait(60)\n"
        "    print('it went on')\n"
        "cli.main = answer\n"
        "main()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_who_ignores_ctrl_c_keeps_it_ignored() -> None:
    done = ended(
        "import signal\n"
        "from pilotfish.apps import cli\n"
        f"from {ENTRY} import main\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "def answer():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('it went on')\n"
        "cli.main = answer\n"
        "main()"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "it went on\n", "")


def test_what_begins_the_command_and_the_package_imports_next_to_nothing() -> None:
    done = ended(
        "import sys\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        f"import pilotfish, {ENTRY}\n"
        "after = {name.partition('.')[0] for name in sys.modules} - before\n"
        "print(*sorted(after - set(sys.stdlib_module_names)))"
    )
    assert done.stdout == "pilotfish\n", done.stderr


def test_every_public_name_is_found_and_listed() -> None:
    import pilotfish

    assert set(pilotfish.__all__) | {"errors", "policies", "proposers"} <= set(dir(pilotfish))
    for name in pilotfish.__all__:
        found = getattr(pilotfish, name)
        assert found is getattr(importlib.import_module(found.__module__), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pilotfish.nothing
    with pytest.raises(ImportError):
        exec("from pilotfish import nothing")


def test_no_memory_for_the_command_itself_is_one_line() -> None:
    done = ended(
        "from pilotfish.apps import cli\n"
        f"from {ENTRY} import main\n"
        "def answer(): raise MemoryError\n"
        "cli.main = answer\n"
        "main()"
    )
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("pilotfish: there is no memory left.")
    assert len(done.stderr.splitlines()) == 1
