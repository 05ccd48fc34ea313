"""What the documentation says is run: its Python, its command lines, its options, its links.

Every page is one program: its ```python blocks, in order, share a namespace. The pages name the model
"smollm2-135m"; here a tiny model of random weights stands in its place.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import pilotfish
from pilotfish.apps.cli import app
from pilotfish.testing.tiny_models import tiny_gguf

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS])
MODEL = '"smollm2-135m"'
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
DOCUMENTED = ("pilotfish", "pilotfish.errors", "pilotfish.policies", "pilotfish.proposers")  # on the reference page
PUBLIC = {*DOCUMENTED, "pilotfish.testing", "pilotfish.backends"}  # what a user's program may import
FENCE = re.compile(r"^```(\w*)\s*$")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, int, list[str]]]:
    """(language, line number of the first line, lines) of every fenced block."""
    language, start, lines = None, 0, list[str]()
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if fence and language is None:
            language, start, lines = fence[1], number + 1, []
        elif fence:
            yield language or "", start, lines
            language = None
        elif language is not None:
            lines.append(line)
    assert language is None, f"{page}: the block at line {start} never ends"


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```\s*$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def program(page: Path) -> str:
    """The page with everything blanked out but its Python, so that line numbers are the page's own."""
    lines = [""] * len(page.read_text("utf-8").splitlines())
    for language, start, code in blocks(page):
        if language == "python":
            lines[start - 1 : start - 1 + len(code)] = code
    return "\n".join(lines) + "\n"


PROGRAMS = [page for page in PAGES if program(page).strip()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)  # one that talks


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_python_of_a_page_runs(
    page: Path, tiny: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "docs-cache"))
    monkeypatch.chdir(tmp_path)
    code = program(page)
    if "pilotfish.export(" in code:
        for package in ("torch", "transformers", "onnxscript"):
            pytest.importorskip(package)
    assert "pilotfish.load(" not in code or MODEL in code, "a page loads the model by the name that is replaced here"
    script = tmp_path / f"{page.stem.replace('-', '_')}_page.py"
    script.write_text(code.replace(MODEL, repr(str(tiny))), "utf-8")
    runpy.run_path(str(script))


def test_there_are_programs_to_run() -> None:
    wanted = {"README.md", "docs/how-a-round-works.md", "docs/exactness.md", "docs/adding-a-proposer.md"}
    assert wanted <= {name_of(page) for page in PROGRAMS}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `pilotfish` in a line of shell, pipes and redirections apart."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set("();<>|&"):
            if "pilotfish" in words[:1]:
                yield words[1:]
            words = [] if set(word) <= set("();|&") else ["(file)"]
        elif word != "$" and not (not words and re.fullmatch(r"\w+=.*", word)):
            words.append(word)


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """(where, arguments); what only names a command in a sentence, `pilotfish inspect`, asks for its help."""
    for page in PAGES:
        lines = [
            line
            for language, _, code in blocks(page)
            for line in code
            if language in ("bash", "sh") or (language == "console" and line.startswith("$ "))
        ]
        named = re.findall(r"(?<!`)`(pilotfish [^`]*)`", prose(page))
        for line in lines + [f"{c} --help" if re.fullmatch(r"[a-z ]+", c) else c for c in named]:
            for arguments in commands(line):
                yield f"{name_of(page)}: {line}", arguments


def parse(arguments: list[str]) -> None:
    """Run the command line's own parser over the arguments, and nothing else. Raises what it raises."""
    command: Any = typer.main.get_command(app)
    names: list[str] = []
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"there is no command {' '.join([*names, arguments[0]])}"
        command, names, arguments = command.commands[arguments[0]], [*names, arguments[0]], arguments[1:]
    if not hasattr(command, "commands") and "--help" not in arguments:
        command.make_context(" ".join(names), arguments)


@pytest.mark.parametrize(("line", "arguments"), [pytest.param(*c, id=c[0]) for c in documented_commands()])
def test_documented_command_line_parses(line: str, arguments: list[str]) -> None:
    parse(arguments)


def test_the_parser_refuses_what_does_not_exist() -> None:
    for line, said in {
        "pilotfish run m --nonsense": "nonsense",
        "pilotfish fly --help": "fly",
        "pilotfish inspect --json": "model",
        "pilotfish bench run m --tokens many": "valid integer",
    }.items():
        (arguments,) = commands(line)
        with pytest.raises(Exception, match=said):  # of typer's own classes, which it keeps to itself
            parse(arguments)


def test_shell_lines_are_taken_apart() -> None:
    line = "$ PILOTFISH_CACHE=big cat a.txt | pilotfish run m 'two words' '' > out.txt && pilotfish doctor  # why"
    assert list(commands(line)) == [["run", "m", "two words", ""], ["doctor"]]


def all_options() -> set[str]:
    found: set[str] = set()
    todo: list[Any] = [typer.main.get_command(app)]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        found.update(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=name_of)
def test_named_options_exist(page: Path) -> None:
    named = set(re.findall(r"(?<!`)`(--[a-z][a-z-]*)", prose(page)))
    assert named <= all_options()


def test_readme_names_every_option_of_run() -> None:
    command: Any = typer.main.get_command(app)
    options = {o for p in command.commands["run"].params for o in p.opts if o.startswith("--")}
    assert {o for o in options if f"`{o}" not in prose(ROOT / "README.md")} == set()


def test_named_extras_exist() -> None:
    extras = set(metadata.metadata("pilotfish").get_all("Provides-Extra") or [])
    named = {x for page in PAGES for x in re.findall(r"pip install [^`\n]*\[(\w+)\]", page.read_text("utf-8"))}
    assert {"demo", "dev"} <= named <= extras


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, made as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(linked), target


def deep_imports(code: str) -> set[str]:
    """What a program imports of Pilotfish that is not public."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pilotfish":
            found.update(f"pilotfish.{alias.name}" for alias in node.names if alias.name not in pilotfish.__all__)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "pilotfish"} - PUBLIC


@pytest.mark.parametrize("file", [*PROGRAMS, *EXAMPLES], ids=name_of)
def test_readers_are_shown_public_names_only(file: Path) -> None:
    assert deep_imports(program(file) if file.suffix == ".md" else file.read_text("utf-8")) == set()


def test_a_deep_import_is_seen() -> None:
    code = "import os, pilotfish.runtime.model.model\ndef f():\n    from pilotfish import load, runtime\n"
    assert deep_imports(code) == {"pilotfish.runtime.model.model", "pilotfish.runtime"}
    assert deep_imports("from pilotfish.runtime.errors import OptionError") == {"pilotfish.runtime.errors"}
    assert deep_imports("import pilotfish\nfrom pilotfish import Job, errors\nfrom .text import x") == set()


def section(module: ModuleType) -> str:
    """What the reference page says about a module."""
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    _, _, found = page.partition(f"\n## `{module.__name__}`\n")
    return re.split(r"^## ", found, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_reference_documents_every_public_name(name: str) -> None:
    module = importlib.import_module(name)
    entries = re.findall(r"^(?:### |\| )`([A-Za-z]\w*)`", section(module), flags=re.MULTILINE)
    assert set(module.__all__) - set(entries) == set()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_reference_names_every_argument(name: str) -> None:
    module = importlib.import_module(name)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", section(module)))))
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isfunction(value) or (inspect.isclass(value) and dataclasses.is_dataclass(value)):
            arguments = {each for each in inspect.signature(value).parameters if not each.startswith("_")}
            assert arguments - named == set(), public


def test_public_modules_are_imported_when_they_are_asked_for() -> None:
    loaded = "print([m for m in sys.modules if m in ('pilotfish.errors', 'pilotfish.policies', 'pilotfish.proposers')])"
    code = f"import sys, pilotfish; {loaded}; pilotfish.errors.OptionError, pilotfish.policies, pilotfish.proposers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_page_is_linked_from_the_first_one() -> None:
    first = ROOT / "docs" / "README.md"
    targets = re.findall(r"\]\(([^)#\s]+)\)", first.read_text("utf-8"))
    pages = [page.relative_to(first.parent).as_posix() for page in first.parent.rglob("*.md") if page != first]
    assert {page: targets.count(page) for page in pages} == dict.fromkeys(pages, 1)


def test_shortcuts_run_what_the_projects_own_check_runs() -> None:
    check = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    recipe = re.search(r"^lint:\n((?:    .+\n)+)", (ROOT / "justfile").read_text("utf-8"), flags=re.MULTILINE)
    assert recipe is not None
    lint = [line.strip() for line in recipe[1].splitlines()]
    assert lint == [line for line in check if line in lint]
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [hook.replace("--force-exclude", ".") for hook in hooks] == lint


def test_recipes_name_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:runtime|backends|exporters|pilotfish|tests|docs|apps)/[\w/.-]+\.\w+)`", text)
    assert len(named) > 20
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
