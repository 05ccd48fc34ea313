"""The contract, for every engine that is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from session_contract import SessionContract, Subject
from tiny_models import K_SIZES, tiny_gguf
from toy import ToyWeights

from pilotfish.backends import reference
from pilotfish.runtime.interfaces import Weights

CLASS = (*range(2, 18), 32)  # ONNX Runtime: one row, and two and more


def judge(gguf: Path) -> Weights:
    weights: Weights = reference.BACKEND.open(gguf, device=None, threads=1, kv_dtype=None)
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where tiny models and their bundles are made."""
    made = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(made / "cache"))
        yield made


class TestToy(SessionContract):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(ToyWeights(vocab_size=11, context_length=96), same_bits=(1, 2, 3, 5, 8, 16))


class TestToyWithoutAbilities(SessionContract):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(ToyWeights(vocab_size=11, context_length=96, abilities=frozenset()))


class TestReference(SessionContract):
    @pytest.fixture(scope="class", params=["llama", "qwen2"])
    @classmethod
    def subject(cls, request: pytest.FixtureRequest, folder: Path) -> Subject:
        gguf = tiny_gguf(folder / f"reference-{request.param}.gguf", architecture=request.param)
        return Subject(judge(gguf), noise=1e-5)  # numpy sums differently for differently many rows


class TestOnnxRuntime(SessionContract):
    @pytest.fixture(
        scope="class", params=["llama f32", "qwen2 f32", "llama int8", "qwen2 int8 Q4_K", "llama int8 Q8_0"]
    )
    @classmethod
    def subject(cls, request: pytest.FixtureRequest, folder: Path) -> Subject:
        pytest.importorskip("onnxruntime")
        from pilotfish.backends import ort
        from pilotfish.exporters.import_gguf import import_gguf

        architecture, activations, quant = (*request.param.split(), "Q4_1")[:3]
        sizes = K_SIZES if quant == "Q4_K" else None
        path = folder / f"{request.param.replace(' ', '-')}.gguf"
        gguf = tiny_gguf(path, architecture=architecture, quant=quant, **({"sizes": sizes} if sizes else {}))
        bundle = import_gguf(gguf, activations=activations)
        weights: Weights = ort.BACKEND.open(bundle, device=None, threads=2, kv_dtype=None)
        # Rounding activations to int8 turns noise of 1e-7 into steps; between one row and more it does so always.
        noise, judge_noise = (1e-5, 1e-5) if activations == "f32" else (0.3, 0.3)
        return Subject(weights, noise=noise, same_bits=CLASS, judge=judge(gguf), judge_noise=judge_noise)
