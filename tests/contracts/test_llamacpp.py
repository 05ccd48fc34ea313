"""llama.cpp passes the engine contract: flash attention on and off, caches of several types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pilotfish.backends import get
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.tiny_models import K_SIZES, Sizes, tiny_gguf

BACKEND = pytest.importorskip("pilotfish.backends.llamacpp").BACKEND
pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

SIZES = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256)
WIDE = (*range(2, 18), 32, 33)


def opened(path: Path, threads: int = 2, kv_dtype: str | None = None, **options: object) -> Weights:
    weights: Weights = BACKEND.open(path, device=None, threads=threads, kv_dtype=kv_dtype, options=options)
    return weights


def reference(path: Path) -> Weights:
    return get("reference").open(path, device=None, threads=1, kv_dtype=None)


@dataclass(frozen=True)
class Case:
    """A way to run a tiny model, and what it claims."""

    model: str
    noise: float
    model_noise: float  # against f32
    row_classes: tuple[tuple[int, ...], ...] = ()
    threads: int = 2
    kv_dtype: str | None = None
    flash_attention: str = "auto"

    def subject(self, models: dict[str, Path]) -> Subject:
        path = models[self.model]
        make = partial(opened, path, self.threads, self.kv_dtype, flash_attention=self.flash_attention)
        return Subject(
            make,
            self.noise,
            self.row_classes,
            reference=partial(reference, path),
            reference_noise=self.model_noise,
        )


CASES = {
    "llama f32": Case("llama f32", 1e-2, 1e-2),
    "llama": Case("llama", 0.1, 0.3),
    "llama, one thread": Case("llama", 0.1, 0.3, threads=1),
    "llama, attention observed": Case("llama", 0.1, 0.3, flash_attention="off"),
    "llama f32, attention observed": Case("llama f32", 1e-3, 1e-3, flash_attention="off", kv_dtype="f32"),
    "llama, cache q8_0": Case("llama", 0.1, 0.3, kv_dtype="q8_0"),
    "llama, cache q8_0 and f16, attention observed": Case(
        "llama", 0.1, 0.3, kv_dtype="q8_0/f16", flash_attention="off"
    ),
    "qwen2": Case("qwen2", 0.1, 0.3),
    "qwen2, attention observed": Case("qwen2", 0.1, 0.3, flash_attention="off"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_gguf(folder / "llama.gguf", sizes=SIZES),
        "llama f32": tiny_gguf(folder / "llama-f32.gguf", sizes=SIZES, quant="F32"),
        "qwen2": tiny_gguf(folder / "qwen2.gguf", architecture="qwen2", quant="Q4_K", sizes=K_SIZES, tied=False),
    }


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[Subject], None], models: dict[str, Path]) -> None:
    check(CASES[name].subject(models))
