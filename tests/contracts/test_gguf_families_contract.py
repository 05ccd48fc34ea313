"""Families read from .gguf files pass the engine contract on every engine that claims them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from family_files import MADE, random_family
from model_files import imported
from tiers import quick

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Subject

CLASSES = ((1,), (*range(2, 18), 32, 33))
F32 = 2e-5  # sums in another order
ROUNDED, ROUNDED_MODEL = 0.05, 0.3  # activations in int8: between widths, and from f32
OPENVINO = tuple(name for name in MADE if MADE[name].architecture not in ("gemma2", "granite", "olmo2"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {name: random_family(name, folder / f"{name}.gguf", quant="Q8_0") for name in MADE}


def reference(path: Path) -> Weights:
    return get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None)


def opened(engine: str, path: Path, kv_dtype: str | None, options: dict[str, object]) -> Weights:
    return get(engine).open(open_model(path), device=None, threads=2, kv_dtype=kv_dtype, options=options)


def onnx(path: Path, activations: str) -> Subject:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    folder = imported(path, activations=activations)  # type: ignore[arg-type]
    noise, model_noise = (F32, F32) if activations == "f32" else (ROUNDED, ROUNDED_MODEL)
    opener = partial(opened, "onnx", folder, None, {})
    return Subject(opener, noise, CLASSES, reference=partial(reference, path), reference_noise=model_noise)


def openvino(path: Path) -> Subject:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    opener = partial(opened, "openvino", path, "f32", {"dynamic_quantization": 0})
    return Subject(opener, F32, CLASSES, reference=partial(reference, path), reference_noise=F32)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(dict.fromkeys(MADE), "gemma2"))
def test_onnx_runtime(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    check(onnx(files[name], "f32"))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3"])
def test_onnx_runtime_as_it_comes(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    check(onnx(files[name], "int8"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(dict.fromkeys(OPENVINO), "gemma3"))
def test_openvino(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    check(openvino(files[name]))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_reference(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    check(Subject(partial(reference, files[name]), F32))
