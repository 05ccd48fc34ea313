"""Folders made elsewhere pass the engine contract, with the row classes that a probe finds in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
from foreign_folders import genai_folder, ir_folder, optimum_folder
from tiers import quick

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnx")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

F32 = 2e-5  # sums in another order
ONE_SCALE = 0.6  # of random weights, whose activations are rounded together, beside other rows
KINDS: dict[str, tuple[str, Callable[[Path, Path], Path], float]] = {
    "optimum": ("onnx", optimum_folder, F32),
    "genai": ("onnx", genai_folder, F32),
    "genai, positions as an input": ("onnx", partial(genai_folder, positions=True), F32),
    "one scale for all rows": ("onnx", partial(optimum_folder, one_scale=True), ONE_SCALE),
    "optimum-intel": ("openvino", ir_folder, F32),
}


def opened(engine: str, path: Path, threads: int = 2) -> Weights:
    kv_dtype, options = ("f32", {"dynamic_quantization": 0}) if engine == "openvino" else (None, {})
    return get(engine).open(open_model(path), device=None, threads=threads, kv_dtype=kv_dtype, options=options)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    folder = tmp_path_factory.mktemp("folders")
    source = tiny_gguf(folder / "tiny.gguf", quant="F32")

    @cache
    def subject(name: str) -> Subject:
        engine, make, noise = KINDS[name]
        made = make(source, folder / name.replace(" ", "-"))
        opener = partial(opened, engine, made)
        weights = opener()
        classes = calibrate(weights.session(256)).rows.classes
        weights.close()
        roomy = tuple((*range(min(c), 18), 32, 33) if len(c) > 1 else c for c in classes)
        assert noise == ONE_SCALE or len(classes) > 1
        return Subject(opener, noise, roomy, reference=partial(opened, "reference", source), reference_noise=noise)

    return subject


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(KINDS, "optimum", "genai"))
def test_contract(name: str, check: Callable[[Subject], None], subjects: Callable[[str], Subject]) -> None:
    check(subjects(name))
