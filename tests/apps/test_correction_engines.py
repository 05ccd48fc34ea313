"""The trained correction model on every engine: the same answers up to near-ties, drafted or not, and a trial."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pilotfish import Model, load
from pilotfish.backends import get
from pilotfish.exporting.export import export
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.storage import cache_dir

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
pytest.importorskip("nncf", reason="exporting to OpenVINO needs nncf")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("module_cache")]

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # the scripts there run from that folder

ENGINES = ("onnx", "openvino", "llamacpp")
FORMATS = {"onnx": "onnx", "openvino": "openvino", "llamacpp": "gguf"}
NEAR = 1.0  # between the best two logits, of a spread of 19: int8 weights move one by up to 0.7 on each engine
TEXTS = (
    "teh quikc brwon fox jumps oevr the lazy dog",
    "I havent seen thsi befroe, have yuo?",
    "The childern ran doen to the water before anybdy could stop them.",
    "It was a warm mornign, and teh boats were stil asleep in the harbour.",
    "Nobody had thoguht of breakfst yet",
    "She had read it twice alredy,and she wuold read it again beofre the day was over.",
    "there was no hurry abuot anything now",
    "a",
)


@pytest.fixture(scope="module")
def installed() -> list[str]:
    return [name for name in ENGINES if get(name).version() is not None]


@pytest.fixture(scope="module")
def bundle(installed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from correction.pack import unpack

    folder = tmp_path_factory.mktemp("correction")
    unpack(EXAMPLES / "correction" / "weights", folder / "trained")
    export(folder / "trained", folder / "bundle", to=tuple(FORMATS[name] for name in installed), weights="int8")
    return folder / "bundle"


@pytest.fixture(scope="module")
def reference(bundle: Path) -> Iterator[Model]:
    with load(bundle, engine="onnx", threads=2, speculate=False) as model:
        yield model


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_are_those_of_onnx_runtime(engine: str, installed: list[str], bundle: Path, reference: Model) -> None:
    if engine not in installed:
        pytest.skip(f"the {engine} engine is not installed")
    found = []
    for policy in (False, True, Fixed(4)):
        with load(bundle, engine=engine, threads=2, speculate=policy) as model:
            results = [model.generate(text, max_new_tokens=128) for text in TEXTS]
            found.append([list(result.token_ids) for result in results])
    assert found[0] == found[1] == found[2]
    assert sum(result.stats.accepted for result in results) > 50
    for text, tokens in zip(TEXTS, found[0], strict=True):
        expected = list(reference.generate(text, max_new_tokens=128).token_ids)
        if tokens != expected:
            pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, expected, strict=False))
            assert gap(reference, bundle, text, expected[: sum(1 for _ in pairs)]) < NEAR


def gap(model: Model, bundle: Path, source: str, tokens: list[int]) -> float:
    """Between the best two logits after these tokens of an answer, on ONNX Runtime."""
    weights = get("onnx").open(open_model(bundle), device=None, threads=2, kv_dtype=None, options={})
    assert weights.info.encoder is not None
    session = weights.session()
    session.encode(model.tokenizer.encode_source(source))
    logits = session.forward(np.array([*weights.info.encoder.decoder_start, *tokens]), n_logits=1).logits[-1]
    second, best = np.sort(logits)[-2:]
    session.close()
    weights.close()
    return float(best - second)


def test_the_engine_is_chosen_by_trial(installed: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTFISH_ENGINE", raising=False)
    with load(bundle, threads=2) as model:
        assert model.info.engine in installed
    trials = [
        trial for kept in (cache_dir() / "trials").glob("*.json") for trial in json.loads(kept.read_text()).values()
    ]
    assert {trial["engine"] for trial in trials} == set(installed)
