"""Weights that are not numbers: found at the first step, named, and never measured, remembered or answered from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pilotfish import Model, Sampling, load
from pilotfish.apps.answer import as_object
from pilotfish.loading.broken_weights import broken_tensor
from pilotfish.runtime.decoding.beam_search import Beams
from pilotfish.runtime.errors import DamagedWeightsError, EngineError, NotFiniteError
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.interfaces import Budget, Draft
from pilotfish.runtime.model.excerpt import excerpt
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.sampling.finite import for_json, require_finite
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.draft_weights import DraftWeights
from pilotfish.runtime.storage import cache_dir
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.testing.toy import ToyWeights
from pilotfish.testing.toy_model import N_TOKENS, toy_model

_NAN, _INF = float("nan"), float("inf")


@pytest.fixture(scope="module", autouse=True)
def own_cache(module_cache: None) -> None:
    """Costs and canaries of this module's models stay in it."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "sound.gguf", seed=10, tied=False)


def broken_copy(sound: Path, path: Path, tensor: str, value: float = _NAN) -> Path:
    """The same model, one value of a tensor (of a quantized one: the scale of its first block) replaced."""
    data = bytearray(sound.read_bytes())
    found = read_gguf(sound).tensors[tensor]
    kind = np.float32 if found.type_name == "F32" else np.float16
    start = found.data.ctypes.data - np.frombuffer(_mapped(found.data), np.uint8).ctypes.data
    data[start : start + np.dtype(kind).itemsize] = np.array([value], kind).tobytes()
    path.write_bytes(data)
    return path


def _mapped(view: np.ndarray) -> memoryview:
    """The whole file that a tensor is a view into."""
    while isinstance(view.base, np.ndarray):
        view = view.base
    assert isinstance(view.base, memoryview)
    return view.base


@pytest.mark.parametrize(
    "logits, ok",
    [
        ([[0.0, 1.0]], True),
        ([[0.0, -_INF]], True),
        ([[-_INF, -_INF]], False),
        ([[0.0, _INF]], False),
        ([[0.0, 1.0], [_NAN, 1.0]], False),
    ],
)
def test_a_single_token_may_be_impossible_and_nothing_else_infinite(logits: list[list[float]], ok: bool) -> None:
    info = ToyWeights().info
    if ok:
        require_finite(np.array(logits, np.float32), info)
        return
    with pytest.raises(NotFiniteError, match="not numbers"):
        require_finite(np.array(logits, np.float32), info)


@pytest.mark.parametrize("engine", ["onnx", "openvino", "llamacpp", "reference", None])
@pytest.mark.parametrize("tensor, value", [("output_norm.weight", _NAN), ("blk.1.ffn_up.weight", _INF)])
def test_every_engine_refuses_them_by_the_tensors_name(
    sound: Path, tmp_path: Path, engine: str | None, tensor: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    if engine is None:
        monkeypatch.delenv("PILOTFISH_ENGINE")
        monkeypatch.delenv("PILOTFISH_THREADS")
    path = broken_copy(sound, tmp_path / "broken.gguf", tensor, value)
    with pytest.raises(DamagedWeightsError, match=tensor) as caught:
        load(path, engine=engine)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    kept = [file for name in ("costs", "trials", "canaries") for file in (cache_dir() / name).glob("*")]
    assert kept == []


def test_the_command_line_says_so_in_one_line(sound: Path, tmp_path: Path) -> None:
    path = broken_copy(sound, tmp_path / "broken.gguf", "blk.0.attn_q.weight")
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "pilotfish.apps.cli", "run", str(path), "hello", "--engine", "onnx", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "\n" not in done.stderr.strip() and "blk.0.attn_q.weight" in done.stderr


def test_a_value_that_only_some_prompts_meet_is_found_at_their_first_step(sound: Path, tmp_path: Path) -> None:
    path = broken_copy(sound, tmp_path / "broken.gguf", "token_embd.weight")  # its first row: the token "!"
    with load(path, engine="onnx") as model:
        for _ in range(2):
            with pytest.raises(DamagedWeightsError, match=r"token_embd\.weight"):
                model.generate("hello!")
            with pytest.raises(DamagedWeightsError, match=r"token_embd\.weight"):
                list(model.chat().stream("hello!"))
            assert len(model.generate("hello", max_new_tokens=4).token_ids) <= 4  # nothing of it is left in the cache
        with pytest.raises(DamagedWeightsError, match=r"token_embd\.weight"):
            excerpt(model, "hello! " * 1500, "the hello", segment=64, budget=200)


def test_bundles_name_their_tensor_too(sound: Path, tmp_path: Path) -> None:
    if find_spec("onnx") is None:
        pytest.skip("onnx is not installed")
    import onnx

    weight = onnx.numpy_helper.from_array(np.array([1.0, _NAN], np.float32), "layers.3.weight")
    number = onnx.numpy_helper.from_array(np.array([1, 2], np.int64), "shape")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [number, weight])), tmp_path / "m.onnx")
    assert broken_tensor([tmp_path / "m.onnx"]) == (tmp_path / "m.onnx", "layers.3.weight")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]},
    }
    text = json.dumps(header).encode()
    values = np.array([1, 2], np.float32).tobytes() + np.array([0x3F80, 0x7F80], np.uint16).tobytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
    assert broken_tensor(folder.iterdir()) == (folder / "model.safetensors", "b")
    assert broken_tensor([sound]) is None and broken_tensor([tmp_path / "nothing.gguf"]) is None


# -- everything that runs steps, on an engine whose logits turn bad ---------------------------------------------------


class Overflowing(ToyWeights):
    """Logits that are not numbers behind any text that holds a "!"."""

    def logits(self, visible: tuple, width: int, source: tuple[int, ...] = ()) -> np.ndarray:  # type: ignore[type-arg]
        found = super().logits(visible, width, source)
        bad = any(entry.token == ord("!") for entry in visible)
        return np.full_like(found, _NAN) if bad else found


def overflowing() -> Overflowing:
    return Overflowing(vocab_size=N_TOKENS, context_length=256, seed=3)


@pytest.fixture
def model() -> Iterator[Model]:
    with toy_model(overflowing(), plain=True) as made:
        yield made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8},
        {"beams": Beams(2)},
        # A rule that leaves one token hides whatever the engine said of the others.
        {"sampling": Sampling(processors=(lambda logits, context: np.where(np.arange(N_TOKENS) == 65, 0.0, -_INF),))},
    ],
)
def test_every_way_of_choosing_refuses_them(model: Model, options: dict[str, object]) -> None:
    with pytest.raises(NotFiniteError, match="not numbers"):
        model.generate("no!", raw=True, max_new_tokens=5, **options)  # type: ignore[arg-type]
    assert model.generate("yes", raw=True, max_new_tokens=5, **options).token_ids  # type: ignore[arg-type]


def test_measuring_refuses_them() -> None:
    class Bad(Overflowing):
        def logits(self, visible: tuple, width: int, source: tuple[int, ...] = ()) -> np.ndarray:  # type: ignore[type-arg]
            return np.full(N_TOKENS, -_INF, dtype=np.float32)

    with pytest.raises(NotFiniteError):
        calibrate(Bad(vocab_size=N_TOKENS).session(64))


def test_a_broken_draft_model_is_refused_by_name() -> None:
    draft = DraftWeights(overflowing(), 1e-6)
    sane = ToyWeights(vocab_size=N_TOKENS, context_length=256, seed=3)
    with toy_model(sane, Fixed(2), draft=draft, proposers=[]) as made:
        with pytest.raises(EngineError, match=r"the draft model computed logits that are not numbers.*draft=None"):
            made.generate("no!", raw=True, max_new_tokens=5)
        assert made.generate("yes", raw=True, max_new_tokens=5).stats.drafted > 0


def test_a_draft_that_leads_to_them_changes_no_answer() -> None:
    """The rows behind a draft are nobody's answer until it is accepted."""

    class Proposing:
        name = "proposing"

        def propose(self, context: np.ndarray, budget: Budget) -> Draft:
            return Draft(np.array([ord("!")], dtype=np.int64))

    with toy_model(overflowing(), plain=True) as plain:
        expected = plain.generate("yes", raw=True, max_new_tokens=8).token_ids
    assert ord("!") not in expected
    with toy_model(overflowing(), Fixed(1), proposers=[Proposing()]) as drafting:
        result = drafting.generate("yes", raw=True, max_new_tokens=8)
    assert result.token_ids == expected and result.stats.drafted > 0


def test_a_broken_draft_file_is_refused_when_it_is_loaded(sound: Path, tmp_path: Path) -> None:
    path = broken_copy(sound, tmp_path / "draft.gguf", "blk.0.ffn_norm.weight")
    with pytest.raises(DamagedWeightsError, match=r"draft\.gguf is damaged: the tensor blk\.0\.ffn_norm\.weight"):
        load(sound, engine="onnx", draft=path)


# -- JSON ------------------------------------------------------------------------------------------------------------


def test_json_has_nothing_in_place_of_numbers_that_it_cannot_write(model: Model) -> None:
    found = for_json({"a": [1.5, _NAN, (_INF, "x")], "b": {"c": -_INF, "d": 3, "e": None, "f": np.float64(_NAN)}})
    assert found == {"a": [1.5, None, [None, "x"]], "b": {"c": None, "d": 3, "e": None, "f": None}}
    result = model.generate("yes", raw=True, max_new_tokens=3)
    stats = replace(result.stats, ttft_s=_INF, verify_s=_NAN)
    json.dumps(as_object(replace(result, stats=stats)), allow_nan=False)
