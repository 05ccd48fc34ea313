"""llama.cpp passes the engine contract: flash attention on and off, caches of several types, tiny and real weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from real_weights import smollm2
from tiers import quick

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Shared, Subject
from pilotfish.testing.tiny_models import K_SIZES, Sizes, tiny_gguf

BACKEND = get("llamacpp")
pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

SIZES = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256)  # a quantized cache has blocks of 32
ALIKE = ((*range(1, 18), 32, 33),)  # flash attention, and weights that are not repacked: every width
OBSERVING = {"flash_attention": "off"}


@dataclass(frozen=True)
class Case:
    """Noise: between widths, and against the reference in f32, relative to the largest logit.

    An f16 cache alone makes 1e-3 of random weights; int8 activations, which quantized weights have, much more.
    """

    model: str
    noise: float
    reference_noise: float
    kv_dtype: str | None = None
    options: dict[str, object] = field(default_factory=dict)
    threads: int = 2
    row_classes: tuple[tuple[int, ...], ...] = ()


CASES = {
    "llama f32": Case("llama f32", 0.01, 0.01),
    "llama f32, f32 cache": Case("llama f32", 1e-3, 1e-3, "f32"),
    "llama": Case("llama", 0.1, 0.3, row_classes=ALIKE),
    "llama, one thread": Case("llama", 0.1, 0.3, threads=1, row_classes=ALIKE),
    "llama, observing": Case("llama", 0.1, 0.3, options=OBSERVING),
    "llama, q8_0 cache": Case("llama", 0.1, 0.3, "q8_0", row_classes=ALIKE),
    "llama, q8_0 keys, observing": Case("llama", 0.1, 0.3, "q8_0/f16", OBSERVING),
    "llama, f16 cache": Case("llama", 0.1, 0.3, "f16", row_classes=ALIKE),
    "llama, f16 cache, one thread": Case("llama", 0.1, 0.3, "f16", threads=1, row_classes=ALIKE),
    "llama, bf16 cache": Case("llama", 0.1, 0.3, "bf16", row_classes=ALIKE),
    "qwen2": Case("qwen2", 0.1, 0.3),
    "qwen2, not repacked": Case("qwen2", 0.1, 0.3, options={"use_extra_bufts": False}),
    "qwen2, observing": Case("qwen2", 0.1, 0.3, options=OBSERVING),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_gguf(folder / "llama.gguf", sizes=SIZES),
        "llama f32": tiny_gguf(folder / "llama-f32.gguf", sizes=SIZES, quant="F32"),
        "qwen2": tiny_gguf(folder / "qwen2.gguf", architecture="qwen2", quant="Q4_K", sizes=K_SIZES, tied=False),
    }


def reference(path: Path) -> Weights:
    return get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None)


def opened(case: Case, path: Path) -> Weights:
    return BACKEND.open(
        open_model(path), device=None, threads=case.threads, kv_dtype=case.kv_dtype, options=case.options
    )


def subject(case: Case, path: Path) -> Subject:
    make, judge = partial(opened, case, path), partial(reference, path)
    return Subject(make, case.noise, case.row_classes, reference=judge, reference_noise=case.reference_noise)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "name", quick(CASES, "llama f32, f32 cache", "llama", "llama, f16 cache", "llama, observing", "qwen2")
)
def test_contract(name: str, check: Callable[[Subject], None], models: dict[str, Path]) -> None:
    case = CASES[name]
    check(subject(case, models[case.model]))


# A prompt step of 64 rows uses another kernel for attention on an f16 cache; int8 activations amplify that to 0.25.
REAL_ALIKE = ((1, 2, 5, 16, 33),)
REAL = {
    "f16": Case("smollm2", 0.4, 0.4, row_classes=REAL_ALIKE),
    "q8_0": Case("smollm2", 0.1, 0.4, "q8_0", row_classes=REAL_ALIKE),
    "observing, one thread": Case("smollm2", 0.4, 0.4, options=OBSERVING, threads=1),
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
        lambda: Shared(shared), case.noise, case.row_classes, (8, 200), lambda: Shared(judge), case.reference_noise
    )
    shared.close()


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_real_weights(check: Callable[[Subject], None], real: Subject) -> None:
    if check.__name__ == "closed_weights_open_nothing":
        check(subject(REAL["f16"], smollm2()))
    else:
        check(real)
