"""Engines by name: built in, from other packages, missing."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pilotfish import backends
from pilotfish.backends.protocol import Backend
from pilotfish.runtime.errors import EngineMissingError, OptionError, UnsupportedModelError
from pilotfish.runtime.files.bundle import Bundle, Manifest, Source
from pilotfish.runtime.files.gguf_model import GgufModel
from pilotfish.runtime.files.model_file import ModelFile
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.install import install_command
from pilotfish.testing.tiny_models import tiny_gguf


class Mine:
    """An engine of another package, which opens what no other does."""

    name = "mine"
    install = "pip install mine"

    def version(self) -> str | None:
        return "1.0"

    def problem(self) -> str | None:
        return None

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def notes(self) -> dict[str, str]:
        return {}

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        return ("mine",)

    def open(self, model: ModelFile, *, device: str | None, threads: int, kv_dtype: str | None) -> object:
        return (model, device, threads, kv_dtype)


BACKEND = Mine()


def bundle(folder: Path, form: str) -> Bundle:
    """A bundle of one format, without any file."""
    source = Source(name="x", sha256="0" * 64, format="huggingface")
    about = {"model_id": "x", "architecture": "llama", "context_length": 9, "source": source}
    return Bundle(folder, Manifest.model_construct(**about, files={}, formats={form: f"x.{form}"}))


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine above, as an installed package announces it."""
    entry = metadata.EntryPoint("mine", f"{__name__}:BACKEND", "pilotfish.backends")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == "pilotfish.backends" else [])


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "m.gguf")


def test_built_in_engines_say_what_they_are() -> None:
    assert {"onnx", "reference"} <= set(backends.names())
    for name in ("onnx", "reference"):
        backend: Backend = backends.get(name)
        assert backend.name == name and backend.install.startswith("pip install")
        if backend.version() is not None:
            assert backend.devices()[0] == "cpu"


def test_an_unknown_engine_is_named_with_those_that_exist() -> None:
    with pytest.raises(OptionError, match=r"no engine 'tensorflow'.*onnx.*reference"):
        backends.get("tensorflow")


def test_engines_of_other_packages(mine: None, tmp_path: Path) -> None:
    assert backends.names()[-1] == "mine"
    assert backends.get("mine") is BACKEND
    assert backends.openers(bundle(tmp_path, "mine")) == [BACKEND]


def test_a_missing_engine_comes_with_the_command_that_adds_it(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_BUILT_IN", {"onnx": "onnx.backend"})  # whatever others may be installed
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what import then finds
    onnx = backends.get("onnx")
    assert onnx.version() is None and onnx.devices() == ()
    for ask in (lambda: backends.named(GgufModel(gguf), "onnx"), lambda: backends.openers(GgufModel(gguf))):
        with pytest.raises(EngineMissingError, match=re.escape(install_command("onnx"))):
            ask()
    with pytest.raises(EngineMissingError, match=re.escape(install_command("onnx"))):
        onnx.open(open_model(gguf), device=None, threads=1, kv_dtype=None)


def test_a_broken_engine_of_another_package_is_not_touched(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    entry = metadata.EntryPoint("broken", "no_such_module:BACKEND", "pilotfish.backends")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    with pytest.warns(RuntimeWarning, match=r"broken engine .* cannot be imported"):
        assert "onnx" in [b.name for b in backends.openers(GgufModel(gguf))]


def test_the_reference_is_picked_only_by_name(gguf: Path) -> None:
    assert backends.named(GgufModel(gguf), "reference").name == "reference"
    if backends.get("onnx").version() is not None:
        assert "reference" not in [b.name for b in backends.openers(GgufModel(gguf))]


def test_what_no_engine_opens(tmp_path: Path) -> None:
    model = bundle(tmp_path, "bin")
    with pytest.raises(UnsupportedModelError, match="which holds bin"):
        backends.openers(model)
    with pytest.raises(UnsupportedModelError, match="which holds bin"):
        backends.named(model, "reference")


@pytest.mark.parametrize("name", ["onnx", "reference"])
def test_devices_and_cache_types_that_do_not_exist(name: str, gguf: Path) -> None:
    backend = backends.get(name)
    if backend.version() is None:
        pytest.skip(f"{name} is not installed")
    with pytest.raises(OptionError, match="'gpu9'"):
        backend.open(open_model(gguf), device="gpu9", threads=1, kv_dtype=None)
    with pytest.raises(OptionError, match="'int2'"):
        backend.open(open_model(gguf), device=None, threads=1, kv_dtype="int2")


def _narrows(test: ast.expr) -> bool:
    """Whether an assertion tells a type checker what a value is, and asks for nothing."""
    if isinstance(test, ast.BoolOp):
        return all(_narrows(part) for part in test.values)
    if isinstance(test, ast.Compare):
        return [type(op) for op in test.ops] == [ast.IsNot] and ast.unparse(test.comparators[0]) == "None"
    return isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance"


def test_no_check_is_gone_where_python_runs_without_assertions() -> None:
    root = Path(backends.__file__).parents[1]
    files = [f for part in ("runtime", "backends", "exporters", "apps") for f in (root / part).rglob("*.py")]
    found = [
        f"{file.name}:{node.lineno}"
        for file in (*files, *root.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and not _narrows(node.test)
    ]
    assert len(files) > 100 and not found, "raise a PilotfishError instead: python -O leaves assertions out"
