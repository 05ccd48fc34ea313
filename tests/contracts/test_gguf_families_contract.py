"""Families read from .gguf files pass the engine contract on every engine that claims them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from family_files import MADE, VOCAB_SIZE, random_family
from model_files import imported
from tiers import quick

import pilotfish
from pilotfish.backends import get
from pilotfish.runtime.errors import UnsupportedModelError
from pilotfish.runtime.files import decoder_shape
from pilotfish.runtime.files.decoder_families import FAMILIES
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.testing import CHECKS, Subject

CLASSES = ((1,), (*range(2, 18), 32, 33))
F32 = 2e-5  # sums in another order
ROUNDED, ROUNDED_MODEL = 0.05, 0.3  # activations in int8: between widths, and from f32
_NOT_OPENVINO = ("gemma2", "gemma4", "granite", "olmo2", "qwen2moe", "granitemoe")
OPENVINO = tuple(name for name in MADE if MADE[name].architecture not in _NOT_OPENVINO)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {name: random_family(name, folder / f"{name}.gguf", quant="Q8_0") for name in MADE}


def reference(path: Path) -> Weights:
    return get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None)


def opened(engine: str, path: Path, kv_dtype: str | None, options: dict[str, object]) -> Weights:
    return get(engine).open(open_model(path), device=None, threads=2, kv_dtype=kv_dtype, options=options)


def onnx(path: Path, activations: str) -> Subject:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    folder = imported(path, activations=activations)  # type: ignore[arg-type]
    noise, model_noise = (F32, F32) if activations == "f32" else (ROUNDED, ROUNDED_MODEL)
    opener = partial(opened, "onnx", folder, None, {})
    return Subject(opener, noise, CLASSES, reference=partial(reference, path), reference_noise=model_noise)


def openvino(path: Path) -> Subject:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    opener = partial(opened, "openvino", path, "f32", {"dynamic_quantization": 0})
    return Subject(opener, F32, CLASSES, reference=partial(reference, path), reference_noise=F32)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(dict.fromkeys(MADE), "gemma2"))
def test_onnx_runtime(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    check(onnx(files[name], "f32"))


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("name", MADE)
def test_every_family_is_computed_as_the_reference_does(engine: str, name: str, files: dict[str, Path]) -> None:
    """In two steps, with what can be observed: the quick part of the contract, for all of them."""
    if engine == "openvino" and name not in OPENVINO:
        with pytest.raises(UnsupportedModelError, match=r"another engine \(onnx, llamacpp\)"):
            openvino(files[name]).open()
        return
    subject = onnx(files[name], "f32") if engine == "onnx" else openvino(files[name])
    sessions = [weights.session(128) for weights in (subject.open(), reference(files[name]))]
    tokens, wanted = np.random.default_rng(0).integers(0, VOCAB_SIZE, 60), ("hidden", "queries")
    observe = frozenset(what for what in wanted if what in sessions[0].abilities)
    assert ("queries" in observe) != name.startswith("gemma4")  # whose layers differ
    for start, end in ((0, 40), (40, 60)):
        steps = [s.forward(tokens[start:end], n_logits=end - start, observe=observe) for s in sessions]
        for what in ("logits", *observe):
            ours, theirs = (getattr(step, what) for step in steps)
            assert np.abs(ours - theirs).max() < F32 * np.abs(theirs).max(), what


def test_queries_carry_a_scale_of_scores(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest Gemma 3 scales scores by its width; on OpenVINO the others have nothing of the kind."""
    family = replace(FAMILIES["gemma3"], wide_scale_layers=3)
    monkeypatch.setattr(decoder_shape, "FAMILIES", {"gemma3": family})
    subject, observe = openvino(files["gemma3"]), frozenset({"queries", "attention"})
    sessions = [weights.session(64) for weights in (subject.open(), reference(files["gemma3"]))]
    ours, theirs = (s.forward(np.arange(20), n_logits=20, observe=observe) for s in sessions)
    for what in ("logits", "queries", "attention"):
        a, b = getattr(ours, what), getattr(theirs, what)
        assert np.abs(a - b).max() < F32 * np.abs(b).max(), what


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gemma4", "phi3", "qwen3moe", "gpt-oss"])
def test_onnx_runtime_as_it_comes(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    subject = onnx(files[name], "int8")
    if FAMILIES[MADE[name].architecture].mixture is not None:  # rounded activations may pick another expert
        subject = replace(subject, reference=None)
    check(subject)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", quick(dict.fromkeys(OPENVINO), "gemma3"))
def test_openvino(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    check(openvino(files[name]))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["gemma2", "gemma4", "gemma4 without layer inputs", "olmo2"])
def test_reference(name: str, check: Callable[[Subject], None], files: dict[str, Path]) -> None:
    if name == "gemma2" and check.__name__ == "attention_is_a_distribution_over_what_is_visible":
        pytest.skip("the check knows no windows and no caps of scores")
    check(Subject(partial(reference, files[name]), F32))


@pytest.mark.parametrize(("engine", "name"), [("onnx", "gemma3"), ("openvino", "gemma3"), ("onnx", "gemma4")])
def test_drafts_change_nothing_beyond_the_window(engine: str, name: str, files: dict[str, Path]) -> None:
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    path, prompt = files[name], "the hello and the hello, and the hello"
    with (
        pilotfish.load(path, engine, speculate=False) as plain,
        pilotfish.load(path, engine, draft=path, speculate=Fixed(3), proposers=()) as model,
    ):
        ours, theirs = (m.generate(prompt, max_new_tokens=40) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids and len(ours.token_ids) > 8
        assert ours.stats.accepted > 0
