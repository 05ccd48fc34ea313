"""OpenVINO passes the engine contract with every kind of cache, on tiny models and, where at hand, on real weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from real_weights import smollm2
from tiers import quick

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Shared, Subject
from pilotfish.testing.tiny_models import K_SIZES, tiny_gguf

pytest.importorskip("openvino", reason="OpenVINO is not installed")

CLASSES = ((1,), (*range(2, 18), 32, 33))
REAL_CLASSES = ((1,), (2, 5, 16, 33))  # of them, around what kernels take at a time
EXACT = {"dynamic_quantization": 0}


@dataclass(frozen=True)
class Case:
    """Noise: between widths, and against the reference, relative to the largest logit."""

    model: str
    kv_dtype: str | None
    options: dict[str, object]
    noise: float
    reference_noise: float | None  # None: not compared, the cache is too coarse for a random model
    threads: int = 2


pytestmark = pytest.mark.usefixtures("module_cache")
CASES = {
    "llama f32 exact": Case("llama", "f32", EXACT, 2e-5, 2e-5),
    "qwen2 f32 exact": Case("qwen2", "f32", EXACT, 2e-5, 2e-5),
    "llama as it comes": Case("llama", None, {}, 0.05, 0.2),
    "llama as it comes, one thread": Case("llama", None, {}, 0.05, 0.2, threads=1),
    "qwen2 as it comes": Case("qwen2", None, {}, 0.05, 0.2),
    "llama f32": Case("llama", "f32", {}, 0.05, 0.2),
    "llama u8": Case("llama", "u8", {}, 0.1, 0.3),
    "qwen2 u8": Case("qwen2", "u8", {}, 0.1, 0.3),
    "llama u8 keys and u4 values": Case("llama", "u8/u4", {}, 0.3, None),
    "llama u4": Case("llama", "u4", {}, 1.0, None),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_gguf(folder / "llama.gguf", quant="Q8_0"),
        "qwen2": tiny_gguf(folder / "qwen2.gguf", architecture="qwen2", quant="Q8_0", sizes=K_SIZES),
    }


def reference(path: Path) -> Weights:
    return get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None)


def opened(case: Case, path: Path) -> Weights:
    return get("openvino").open(
        open_model(path), device=None, threads=case.threads, kv_dtype=case.kv_dtype, options=case.options
    )


def subject(case: Case, path: Path) -> Subject:
    judge = None if case.reference_noise is None else partial(reference, path)
    return Subject(
        partial(opened, case, path), case.noise, CLASSES, reference=judge, reference_noise=case.reference_noise or 0.0
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(CASES, "llama f32 exact", "qwen2 as it comes", "llama u8"))
def test_contract(name: str, check: Callable[[Subject], None], models: dict[str, Path]) -> None:
    case = CASES[name]
    check(subject(case, models[case.model]))


REAL = {
    "f16": Case("smollm2", None, {}, 0.1, 0.2),
    "f32, one thread": Case("smollm2", "f32", {}, 0.1, 0.2, threads=1),
    "u8": Case("smollm2", "u8", {}, 0.1, 0.2),
}


@pytest.fixture(scope="module")
def judge() -> Iterator[Weights]:
    weights = reference(smollm2())
    yield weights
    weights.close()


@pytest.fixture(scope="module", params=quick(REAL, "f16"))
def real(request: pytest.FixtureRequest, judge: Weights) -> Iterator[Subject]:
    """SmolLM2, opened once for all checks but the one that closes weights."""
    case = REAL[request.param]
    shared = opened(case, smollm2())
    yield Subject(
        lambda: Shared(shared), case.noise, REAL_CLASSES, (8, 200), lambda: Shared(judge), case.reference_noise or 0.0
    )
    shared.close()


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_real_weights(check: Callable[[Subject], None], real: Subject) -> None:
    if check.__name__ == "closed_weights_open_nothing":
        check(subject(REAL["f16"], smollm2()))
    else:
        check(real)
