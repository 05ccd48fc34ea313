"""Models whose layers differ in size, share what they keep, and are given more than what the last layer gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_files import VOCAB_SIZE, random_family
from folders import folder_of
from model_files import imported

import pilotfish
from pilotfish.backends import get
from pilotfish.runtime.errors import AbilityError, OptionError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Session
from pilotfish.runtime.speculation.draft_length import Fixed

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("module_cache")
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 60)
ENGINES = ("onnx", "reference")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_family("gemma4", tmp_path_factory.mktemp("models") / "m.gguf", quant="F16")


def session_of(engine: str, path: Path) -> Session:
    return get(engine).open(open_model(path), device=None, threads=1, kv_dtype=None).session()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_second_table_of_halves_is_kept_as_it_is(kind: str, path: Path, tmp_path: Path) -> None:
    """It is the largest of all tensors: in f32 it would take twice the room, and be made whole in memory."""
    source = path if kind == "F16" else folder_of("gemma4", path, tmp_path / "f", bf16=True)
    bundle = imported(source, activations="f32")
    graph = onnx.load(str(bundle / "model.onnx"), load_external_data=False).graph
    (table,) = (x for x in graph.initializer if x.name == "inputs.table")
    assert table.data_type == (onnx.TensorProto.FLOAT16 if kind == "F16" else onnx.TensorProto.BFLOAT16)
    ours, theirs = (
        session_of(e, p).forward(TOKENS, n_logits=60).logits for e, p in (("onnx", bundle), ("reference", source))
    )
    assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()


def test_what_a_layer_keeps_is_held_once(path: Path) -> None:
    """Three of five layers keep anything: 16 numbers of a head twice, 32 once."""
    session = session_of("reference", path)
    session.forward(TOKENS, n_logits=0)
    assert session.nbytes == 60 * 2 * 2 * (16 + 16 + 32) * 4
    session = session_of("onnx", imported(path))
    assert session.nbytes == session.max_context * 2 * 2 * (16 + 16 + 32) * 4


def test_whole_tokens_are_evicted_with_and_without_drafts(path: Path) -> None:
    engine = "onnx"  # drafts on the reference engine are as exact as the processor's BLAS
    cache, prompt = "sinks:budget=24,every=8,sinks=4,window=12", "the hello and the hello, and the hello and the sea"
    with (
        pilotfish.load(path, engine, cache=cache, speculate=False, threads=1) as plain,
        pilotfish.load(path, engine, cache=cache, draft=path, speculate=Fixed(3), proposers=(), threads=1) as model,
    ):
        ours, theirs = (m.generate(prompt, raw=True, max_new_tokens=40) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids and ours.stats.accepted > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cache", ["keydiff", "snapkv", "h2o", "select"])
def test_what_needs_all_layers_alike_is_refused(engine: str, cache: str, path: Path) -> None:
    with pytest.raises(
        AbilityError, match=rf"different sizes, or share them, .* the {engine} engine\. .* sinks or sirllm\.$"
    ):
        pilotfish.load(path, engine, cache=cache, exact=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_reason_is_said(engine: str, path: Path) -> None:
    session = session_of(engine, path if engine == "reference" else imported(path))
    session.forward(TOKENS[:8], n_logits=0)
    why = rf"different sizes, or share them.* {engine} engine"
    with pytest.raises(AbilityError, match=why):
        session.keys_values(0)
    with pytest.raises(AbilityError, match=why):
        session.forward(TOKENS[8:9], n_logits=1, observe=frozenset({"queries"}))
    with pytest.raises(AbilityError, match=why):
        session.keep(np.zeros((5, 2, 1), dtype=np.int64))
    assert len(session.positions) == 8


def test_a_cache_in_int8_is_refused(path: Path) -> None:
    with pytest.raises(OptionError, match="different sizes, or share them, which the onnx engine stores in f32 only"):
        get("onnx").open(open_model(imported(path)), device=None, threads=1, kv_dtype="int8")


def test_a_conversation_goes_on_where_it_was(path: Path) -> None:
    """What is known of a prompt is not run again, and the answer is that of a new session."""
    prompt = "the hello and the hello, and the hello"
    with pilotfish.load(path, "onnx", threads=1) as model, pilotfish.load(path, "onnx", threads=1) as other:
        model.generate(prompt, raw=True, max_new_tokens=12)
        again = model.generate(f"{prompt} and the sea", raw=True, max_new_tokens=12)
        assert again.token_ids == other.generate(f"{prompt} and the sea", raw=True, max_new_tokens=12).token_ids
        assert again.stats.n_reused > 0
