"""Engines that are installed and do not run: one line with the command that mends them, never a traceback."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from command_line import Run, own_cache, pilotfish, refused, tiny

from pilotfish import backends
from pilotfish.apps.bench.bare_genai import OpenVinoGenAi
from pilotfish.apps.bench.bare_llamacpp import LlamaCpp
from pilotfish.apps.bench.bare_onnx import OnnxRuntime
from pilotfish.backends.common import packages
from pilotfish.backends.llamacpp import backend as llamacpp
from pilotfish.backends.llamacpp.probe import Verdict
from pilotfish.runtime.errors import EngineError, EngineMissingError
from pilotfish.runtime.files.open_model import open_model

__all__ = ["own_cache", "pilotfish", "tiny"]  # fixtures
MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}
ANEW = "pip install --force-reinstall --no-cache-dir --no-deps"
WAYS = {
    "a missing library": "raise ImportError('libgomp.so.1: cannot open shared object file\\n(see ldd)')",
    "a wrong system": "raise OSError('version `GLIBC_2.38` not found')",
    "what another package left": "",  # an empty folder imports, and has nothing
    "no words": "raise SystemError",
}


def break_package(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, source: str) -> None:
    """Put a package that fails in this way before the installed one."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, module, ModuleType(module))  # so that what is there now comes back afterwards
    del sys.modules[module]


def break_llamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for another processor, installed."""
    how = "This build of llama.cpp does not run on this processor: a process of its own died of an illegal instruction."
    monkeypatch.setattr(llamacpp, "version", lambda: "0.3.36")
    monkeypatch.setattr(llamacpp, "build_verdict", lambda: Verdict(False, False, how, "", "0" * 64))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", MODULES)
def test_a_package_that_cannot_be_imported(
    engine: str, way: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_package(monkeypatch, tmp_path, MODULES[engine], WAYS[way])
    backend = backends.get(engine)
    problem = backend.problem()
    assert backend.version() is not None and backend.devices() == () and not backends.usable(backend)
    assert problem is not None and "\n" not in problem
    assert f"{engine} engine is installed, but does not run: " in problem and f"{ANEW} '{MODULES[engine]}" in problem
    with pytest.raises(EngineError, match="Install it anew"):
        backends.named(open_model(tiny), engine)
    with pytest.raises(EngineError, match="Install it anew"):
        backend.open(open_model(tiny), device=None, threads=1, kv_dtype=None)
    monkeypatch.setattr(backends, "_BUILT_IN", {engine: backends._BUILT_IN[engine]})
    with pytest.raises(EngineError, match=r"no engine here opens .* Install it anew"):
        backends.openers(open_model(tiny))


def test_every_command_says_what_mends_an_engine(
    tiny: Path, tmp_path: Path, pilotfish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_package(monkeypatch, tmp_path, "openvino", WAYS["a missing library"])
    break_llamacpp(monkeypatch)
    lines = (
        f"openvino: the openvino engine is installed, but does not run: libgomp.so.1: cannot open shared object file "
        f"(see ldd). Install it anew: {ANEW} 'openvino",
        "died of an illegal instruction. Build it anew: ",
        f"{ANEW} --no-binary llama-cpp-python 'llama-cpp-python",
    )
    for asked in (("doctor",), ("doctor", tiny)):
        outcome = pilotfish(*asked)
        assert outcome.code == 0 and all(line in outcome.out for line in lines)
    facts = json.loads(pilotfish("doctor", "--json").out)["engines"]
    assert not facts["llamacpp"]["available"] and "DGGML_NATIVE=OFF" in facts["llamacpp"]["problem"]
    assert facts["onnx"]["available"] and facts["onnx"]["problem"] is None
    refused(pilotfish("run", tiny, "hi", "--engine", "openvino"), "Install it anew: pip install")
    refused(pilotfish("run", tiny, "hi", "--engine", "llamacpp"), "Build it anew: ", "--no-binary llama-cpp-python")
    refused(pilotfish("bench", "curve", tiny, "--engines", "llamacpp"), "Build it anew: ")
    assert pilotfish("run", tiny, "hi", "-n", 2).code == 0  # on the engine that runs


def test_a_benchmark_leaves_out_a_peer_that_cannot_be_imported(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, peer in (("llama_cpp", LlamaCpp), ("openvino_genai", OpenVinoGenAi), ("onnxruntime", OnnxRuntime)):
        break_package(monkeypatch, tmp_path, module, WAYS["a wrong system"])
        assert peer.open(open_model(tiny), 1, 64) is None


def test_a_package_that_is_not_there_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, None)  # what import then finds
        backend = backends.get(engine)
        assert backend.version() is None and backend.problem() is None
        with pytest.raises(EngineMissingError, match="Add it with: pip install"):
            backends.require(backend)


def test_the_command_takes_the_package_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert packages.reinstall("onnxruntime") == f"{ANEW} 'onnxruntime-gpu'"
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"llama_cpp": ["llama_cpp_python"]})
    wanted = ["numpy>=1", 'llama-cpp-python>=0.3.36; extra == "llamacpp"', "llama-cpp-python-server"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    anew = packages.reinstall("llama_cpp", "--no-binary {name}")
    assert anew == f"{ANEW} --no-binary llama-cpp-python 'llama-cpp-python>=0.3.36'"


def test_a_folder_of_libraries_that_is_not_there_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotfish.backends.llamacpp import library as llamacpp_library

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "none"))
    assert llamacpp_library.shared_libraries() == ()
