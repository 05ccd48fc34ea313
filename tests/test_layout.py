"""The layout of the package: no circles of imports, sizes, and folders that say what they hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("runtime", "backends", "exporters", "apps")  # folders beside pilotfish/, and packages inside of it
MAX_LINES, MAX_FUNCTION = 320, 70
LONG_FUNCTIONS = {
    "pilotfish/loading/load.py load": 134,  # a parameter and a line of documentation for every option
    "apps/answer_command.py run": 76,  # a parameter for every option of the command line
}
NO_MIRROR = {"contracts", "helpers"}  # the contract that every engine is held to, and what several tests share


def sources() -> Iterator[tuple[str, Path]]:
    """Each file of the package with the path it is known by: runtime/errors.py, pilotfish/loading/load.py."""
    for part in (*PARTS, "pilotfish"):
        folder = ROOT / part
        for path in sorted(folder.rglob("*.py")):
            below = path.relative_to(folder).parts
            if part != "pilotfish" or below[0] not in PARTS:  # there they are links
                yield "/".join((part, *below)), path


def module_name(path: str) -> str:
    """pilotfish.runtime.errors for runtime/errors.py; a package for its __init__.py."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(part for part in ("pilotfish", *parts[parts[0] == "pilotfish" :]) if part != "__init__")


def imported(path: str, text: str, modules: Set[str]) -> set[str]:
    """Modules of ours that a file imports anywhere: inside functions and for annotations, too."""
    package = module_name(path) if path.endswith("__init__.py") else module_name(path).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join((*above, *([node.module] if node.module else [])))
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else origin for name in names}
    return found & modules


def circles(imports: Mapping[str, Set[str]]) -> set[frozenset[str]]:
    """Groups of modules each of which reaches every other one: the strongly connected components with an edge."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        seen: set[str] = set()
        waiting = [*imports[module]]
        while waiting:
            if (found := waiting.pop()) not in seen:
                seen.add(found)
                waiting += imports[found]
        reached[module] = seen
    return {frozenset(x for x in reached[module] if module in reached[x]) for module in imports} - {frozenset()}


def test_no_modules_import_each_other() -> None:
    files = {path: file.read_text() for path, file in sources()}
    modules = {module_name(path) for path in files}
    found = circles({module_name(path): imported(path, text, modules) for path, text in files.items()})
    assert not found, "\n".join(" <-> ".join(sorted(group)) for group in found)


def test_a_circle_is_seen_wherever_its_imports_stand() -> None:
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .b import B
def f():
    from .. import a
    from ..a import c
    import pilotfish.runtime.errors
"""
    modules = {"pilotfish.a", "pilotfish.a.a", "pilotfish.a.b", "pilotfish.a.c", "pilotfish.runtime.errors"}
    expected = modules - {"pilotfish.a.a"}
    assert imported("pilotfish/a/a.py", text, modules) == expected
    assert imported("pilotfish/a/__init__.py", "from .b import B\nfrom . import c", modules) == {
        "pilotfish.a.b",
        "pilotfish.a.c",
    }
    assert module_name("runtime/cache/__init__.py") == "pilotfish.runtime.cache"
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}, "e": {"a", "e"}}) == {
        frozenset("bcd"),
        frozenset("e"),
    }


def test_files_and_functions_are_short() -> None:
    problems = []
    for path, file in sources():
        text = file.read_text()
        n = len(text.splitlines())
        if n > MAX_LINES:
            problems.append(f"{path} has {n} lines: split it by idea")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                n, name = node.end_lineno - node.lineno + 1, f"{path} {node.name}"
                if n > LONG_FUNCTIONS.get(name, MAX_FUNCTION):
                    problems.append(f"{name} has {n} lines: name its parts")
    assert not problems, "\n".join(problems)


def test_every_package_is_installed() -> None:
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {module_name(path) for path, _ in sources() if path.endswith("/__init__.py")} == {*listed}
    assert len(listed) == len({*listed})


def test_tests_lie_where_what_they_test_lies() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    mirrored = [folder for folder in folders if not NO_MIRROR & {*folder.parts}]
    assert not [str(x) for x in mirrored if not ((ROOT / x).is_dir() or (ROOT / "pilotfish" / x).is_dir())]
