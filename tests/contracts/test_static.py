"""Graphs of fixed shapes pass the engine contract, on tiny models and, where they are at hand, on real weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from model_files import imported
from real_weights import smollm2
from tiers import quick

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.tiny_models import tiny_gguf

CLASSES = ((1,), (4, 8, 16))
F32 = 2e-5  # sums in another order


@dataclass(frozen=True)
class Case:
    """Noise: between widths, and against the reference, relative to the largest logit."""

    engine: str
    device: str
    model: str
    noise: float
    reference_noise: float
    options: dict[str, object] = field(default_factory=dict)
    classes: tuple[tuple[int, ...], ...] = CLASSES


pytestmark = pytest.mark.usefixtures("module_cache")
CASES = {
    "onnx llama f32": Case("onnx", "static", "llama", F32, F32, {"activations": "f32"}),
    "onnx llama int8": Case("onnx", "static", "llama", 0.05, 0.3),
    "onnx qwen2 f32": Case("onnx", "static", "qwen2", F32, F32, {"activations": "f32"}),
    "onnx qwen2 int8": Case("onnx", "static", "qwen2", 0.05, 0.3),
    "openvino llama": Case("openvino", "npu-emulated", "llama", F32, F32),
    "openvino qwen2": Case("openvino", "npu-emulated", "qwen2", F32, F32),
    "onnx floats, other shapes": Case(
        "onnx", "static", "floats", F32, F32, {"widths": (2, 8), "chunk": 24, "windows": (64, 128)}, ((2, 8),)
    ),
}


@pytest.fixture(scope="module")
def models(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {**models, "floats": tiny_gguf(tmp_path_factory.mktemp("models") / "floats.gguf", quant="F16")}


def opened(case: Case, path: Path) -> Weights:
    folder = imported(path, form="onnx-static")
    return get(case.engine).open(open_model(folder), device=case.device, threads=2, kv_dtype=None, options=case.options)


def subject(case: Case, path: Path) -> Subject:
    backend = get(case.engine)
    if backend.version() is None or case.device not in backend.devices():
        pytest.skip(f"{case.engine} has no device {case.device} here")
    judge = partial(get("reference").open, open_model(path), device=None, threads=1, kv_dtype=None)
    return Subject(
        partial(opened, case, path), case.noise, case.classes, reference=judge, reference_noise=case.reference_noise
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(CASES, "onnx llama int8", "onnx qwen2 f32", "openvino llama"))
def test_contract(name: str, check: Callable[[Subject], None], models: dict[str, Path]) -> None:
    case = CASES[name]
    check(subject(case, models[case.model]))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_real_weights(check: Callable[[Subject], None]) -> None:
    check(subject(Case("onnx", "static", "", 0.1, 0.2), smollm2()))
