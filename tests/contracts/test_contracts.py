"""Every engine passes the engine contract, on tiny models and, where they are at hand, on real weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from engine_contract import CHECKS, Subject
from real_weights import smollm2
from tiny_models import K_SIZES, tiny_gguf
from toy import ToyWeights

from pilotfish.backends import get
from pilotfish.exporters.import_gguf import import_gguf
from pilotfish.runtime.interfaces import ModelInfo, Session, Weights

WIDE = (*range(2, 18), 32, 33)  # ONNX Runtime: one row is a class of its own, all others are another
ORT_CLASSES = ((1,), WIDE)
F32 = 2e-5  # sums in another order
# Noise of 1e-7 is amplified where it carries an activation over the edge between two int8 codes.
INT8, INT8_MODEL = 0.05, 0.3  # between widths; between the int8 recipe and f32
REAL_INT8, REAL_INT8_MODEL = 0.1, 0.2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny_gguf(folder / "llama.gguf"),
        "qwen2": tiny_gguf(folder / "qwen2.gguf", architecture="qwen2", quant="Q6_K", sizes=K_SIZES, tied=False),
    }


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    patch = pytest.MonkeyPatch()
    patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def open_engine(engine: str, path: Path, threads: int = 2) -> Weights:
    return get(engine).open(path, device=None, threads=threads, kv_dtype=None)


def toy(**options: object) -> Subject:
    """Noise of the toy is absolute, on logits of about 3."""
    made = partial(ToyWeights, **{"vocab_size": 17, "context_length": 256, **options})  # type: ignore[arg-type]
    noise = 0.0 if not options.get("row_noise") else 0.5
    return Subject(made, noise, ((1,), WIDE) if noise else ((1, *WIDE),))


def onnx(path: Path, activations: str, threads: int = 2) -> Subject:
    if get("onnx").version() is None:
        pytest.skip("ONNX Runtime is not installed")
    folder = import_gguf(path, activations=activations)  # type: ignore[arg-type]
    judge = partial(open_engine, "reference", path)
    noise, model_noise = (F32, F32) if activations == "f32" else (INT8, INT8_MODEL)
    return Subject(
        partial(open_engine, "onnx", folder, threads), noise, ORT_CLASSES, reference=judge, reference_noise=model_noise
    )


Models = dict[str, Path]
SUBJECTS: dict[str, Callable[[Models], Subject]] = {
    "toy": lambda models: toy(),
    "toy with two row classes": lambda models: toy(row_noise=0.05),
    "toy that can do nothing": lambda models: toy(abilities=frozenset()),
    "reference llama": lambda models: Subject(partial(open_engine, "reference", models["llama"]), F32),
    "reference qwen2": lambda models: Subject(partial(open_engine, "reference", models["qwen2"]), F32),
    "onnx llama f32": lambda models: onnx(models["llama"], "f32"),
    "onnx llama int8": lambda models: onnx(models["llama"], "int8"),
    "onnx qwen2 f32": lambda models: onnx(models["qwen2"], "f32"),
    "onnx qwen2 int8": lambda models: onnx(models["qwen2"], "int8"),
    "onnx llama int8, one thread": lambda models: onnx(models["llama"], "int8", threads=1),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_contract(name: str, check: Callable[[Subject], None], models: Models) -> None:
    check(SUBJECTS[name](models))


@pytest.fixture(scope="module")
def real() -> Iterator[Subject]:
    """SmolLM2 as the product runs it, opened once for all checks but the one that closes weights."""
    path = smollm2()
    shared, judge = onnx(path, "int8").open(), open_engine("reference", path)
    yield Subject(lambda: Shared(shared), REAL_INT8, ORT_CLASSES, (8, 200), lambda: Shared(judge), REAL_INT8_MODEL)
    shared.close()
    judge.close()


@dataclass(frozen=True)
class Shared:
    """Weights that somebody else closes."""

    weights: Weights

    @property
    def info(self) -> ModelInfo:
        return self.weights.info

    def session(self, max_context: int | None = None) -> Session:
        return self.weights.session(max_context)

    def close(self) -> None:
        pass


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_on_real_weights(check: Callable[[Subject], None], real: Subject) -> None:
    if check.__name__ == "closed_weights_open_nothing":
        check(onnx(smollm2(), "int8"))
    else:
        check(real)
