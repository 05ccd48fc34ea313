"""OpenVINO passes the engine contract with every kind of cache, on tiny models and, where at hand, on real weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from engine_contract import CHECKS, Subject
from tiny_models import K_SIZES, tiny_gguf

from pilotfish.backends import get
from pilotfish.runtime.interfaces import Weights

pytest.importorskip("openvino", reason="OpenVINO is not installed")

CLASSES = ((1,), (*range(2, 18), 32, 33))
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


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def reference(path: Path) -> Weights:
    return get("reference").open(path, device=None, threads=1, kv_dtype=None)


def opened(case: Case, path: Path) -> Weights:
    return get("openvino").open(path, device=None, threads=case.threads, kv_dtype=case.kv_dtype, options=case.options)


def subject(case: Case, path: Path) -> Subject:
    judge = None if case.reference_noise is None else partial(reference, path)
    return Subject(
        partial(opened, case, path), case.noise, CLASSES, reference=judge, reference_noise=case.reference_noise or 0.0
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[Subject], None], models: dict[str, Path]) -> None:
    case = CASES[name]
    check(subject(case, models[case.model]))
