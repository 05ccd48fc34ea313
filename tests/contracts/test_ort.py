"""ONNX Runtime passes the engine contract, on tiny models and, where they are at hand, on real weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from model_files import imported
from real_weights import smollm2

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.testing import CHECKS, Shared, Subject

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

CLASSES = ((1,), (*range(2, 18), 32, 33))  # one row is a class of its own, all others are another
REAL_CLASSES = ((1,), (2, 5, 16, 33))  # of them, around what kernels take at a time
F32 = 2e-5  # sums in another order
# Noise of 1e-7 is amplified where it carries an activation over the edge between two int8 codes.
INT8, INT8_MODEL = 0.05, 0.3  # between widths; between the int8 recipe and f32
INT8_CACHE, INT8_CACHE_MODEL = 0.02, 0.3  # the same edge, of keys and values; and what their rounding costs
REAL_INT8, REAL_INT8_MODEL = 0.1, 0.2


def open_engine(engine: str, path: Path, threads: int = 2, kv_dtype: str | None = None) -> Weights:
    return get(engine).open(open_model(path), device=None, threads=threads, kv_dtype=kv_dtype)


def onnx(path: Path, activations: str, threads: int = 2, kv_dtype: str | None = None) -> Subject:
    folder = imported(path, activations=activations)  # type: ignore[arg-type]
    judge = partial(open_engine, "reference", path)
    noise, model_noise = (F32, F32) if activations == "f32" else (INT8, INT8_MODEL)
    if kv_dtype == "int8":
        noise, model_noise = max(noise, INT8_CACHE), max(model_noise, INT8_CACHE_MODEL)
    opener = partial(open_engine, "onnx", folder, threads, kv_dtype)
    return Subject(opener, noise, CLASSES, reference=judge, reference_noise=model_noise)


CASES = [
    ("llama", "f32", 2, None),
    ("llama", "int8", 2, None),
    ("qwen2", "f32", 2, None),
    ("qwen2", "int8", 2, None),
    ("llama", "f32", 2, "int8"),
    ("qwen2", "int8", 2, "int8"),
    pytest.param("llama", "int8", 1, None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("model", "activations", "threads", "kv_dtype"), CASES)
def test_contract(
    model: str,
    activations: str,
    threads: int,
    kv_dtype: str | None,
    check: Callable[[Subject], None],
    models: dict[str, Path],
) -> None:
    check(onnx(models[model], activations, threads, kv_dtype))


@pytest.fixture(scope="module")
def real() -> Iterator[Subject]:
    """SmolLM2 as the product runs it, opened once for all checks but the one that closes weights."""
    path = smollm2()
    shared, judge = onnx(path, "int8").open(), open_engine("reference", path)
    yield Subject(lambda: Shared(shared), REAL_INT8, REAL_CLASSES, (8, 200), lambda: Shared(judge), REAL_INT8_MODEL)
    shared.close()
    judge.close()


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_real_weights(check: Callable[[Subject], None], real: Subject) -> None:
    if check.__name__ == "closed_weights_open_nothing":
        check(onnx(smollm2(), "int8"))
    else:
        check(real)
