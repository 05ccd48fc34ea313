"""Fixed shapes: the ladder, the graph, the decode loop that keeps to them, and devices that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import imported
from real_weights import smollm2

import pilotfish
from pilotfish.backends import get
from pilotfish.backends.fixed_shapes.session import StaticSession
from pilotfish.backends.fixed_shapes.shapes import Ladder
from pilotfish.runtime.errors import EngineError, ModelFileError, OptionError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.profiling.row_classes import RowClasses
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.testing.tiny_models import K_SIZES, tiny_gguf

onnx = pytest.importorskip("onnx", reason="the importer needs the onnx package")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

SHAPES = {1, 4, 8, 16, 64}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    if "real" not in request.keywords:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    patch.undo()


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(width, window, rows of logits) of every step that ONNX Runtime is given, as its own inputs say."""
    from pilotfish.backends.onnx.fixed_shapes import OrtRunner

    seen: list[tuple[int, int, int]] = []
    run = OrtRunner.run

    def recorded(self: OrtRunner, width: int, window: int, inputs: Any) -> Any:
        seen.append((inputs["input_ids"].shape[1], inputs["past_key_0"].shape[2], len(inputs["logit_rows"])))
        return run(self, width, window, inputs)

    monkeypatch.setattr(OrtRunner, "run", recorded)
    return seen


def static_session(gguf: Path, max_context: int | None = None, **options: object) -> StaticSession:
    folder = imported(gguf, form="onnx-static")
    session = (
        get("onnx")
        .open(open_model(folder), device="static", threads=1, kv_dtype=None, options={"activations": "f32", **options})
        .session(max_context)
    )
    assert isinstance(session, StaticSession)
    return session


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 15, 16, 17, 33, 63, 64, 65, 100, 129])
@pytest.mark.parametrize("n_logits", [0, 1, 10, 10**9])
def test_any_width_is_made_of_steps_on_the_ladder(n_rows: int, n_logits: int) -> None:
    n_logits = min(n_logits, n_rows)
    steps = Ladder().steps(n_rows, n_logits)
    assert [row for start, end, _ in steps for row in range(start, end)] == list(range(n_rows))
    assert all(end - start <= rung and rung in SHAPES for start, end, rung in steps)
    assert all(end <= n_rows - n_logits for _, end, rung in steps if rung == 64)  # chunks give no logits
    assert len(steps) == 1 or all(rung > 1 for _, _, rung in steps)  # one row would be of another row class


def test_windows_hold_what_they_must() -> None:
    assert Ladder().windows_for(5) == (64,)
    assert Ladder().windows_for(256) == (256,)
    assert Ladder().windows_for(300) == (256, 320)
    assert Ladder().windows_for(8192) == (256, 1024, 4096, 8192)


@pytest.mark.parametrize(
    "options",
    [{"widths": (4, 1)}, {"widths": ()}, {"chunk": 16}, {"windows": (100,)}, {"width": (1,)}, {"activations": "int4"}],
)
def test_impossible_shapes_are_refused(gguf: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        static_session(gguf, **options)


def test_the_graph_has_standard_operators_and_only_new_rows_as_outputs(gguf: Path) -> None:
    model = onnx.load(imported(gguf, form="onnx-static") / "model.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    outputs = {
        o.name: o.type.tensor_type.shape.dim[2].dim_param for o in model.graph.output if o.name.startswith("new")
    }
    assert set(outputs) == {f"new_{kind}_{i}" for kind in ("key", "value") for i in range(2)}
    assert set(outputs.values()) == {"n"}
    onnx.checker.check_model(str(imported(gguf, form="onnx-static") / "model.onnx"))


def test_forms_lie_in_bundles_of_their_own_and_the_report_names_losses(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "lossy.gguf", quant="IQ4_NL", sizes=K_SIZES)
    folder = imported(path, form="onnx-static")
    assert folder != imported(path) and folder == imported(path, form="onnx-static")
    manifest = open_bundle(folder).manifest
    assert manifest.formats == {"onnx-static": "model.onnx"}
    lost = {name: x for name, x in manifest.report.items() if name.startswith("relative_loss.")}
    assert len(lost) == manifest.report["requantized_tensors"] == 14 and all(0 < x < 0.01 for x in lost.values())
    with pytest.raises(ModelFileError, match="ONNX"):
        get("onnx").open(open_model(folder), device="cpu", threads=1, kv_dtype=None)
    with pytest.raises(ModelFileError, match="fixed shapes"):
        get("onnx").open(open_model(imported(path)), device="static", threads=1, kv_dtype=None)


def test_padding_is_masked_and_never_stored(gguf: Path, shapes: list[tuple[int, int, int]]) -> None:
    session = static_session(gguf)
    tokens = np.arange(30) % 250
    session.forward(tokens[:21], n_logits=1)
    step = session.forward(tokens[21:24], n_logits=3)
    assert shapes == [(64, 256, 1), (4, 256, 4), (4, 256, 4)] or [s[0] for s in shapes] == [64, 1, 4]
    assert step.logits.shape == (3, session.info.vocab_size) and len(session.positions) == 24
    exact = static_session(gguf, widths=(1, 3, 21), chunk=30)
    exact.forward(tokens[:21], n_logits=1)
    assert np.allclose(
        step.logits, exact.forward(tokens[21:24], n_logits=3).logits, atol=2e-5 * np.abs(step.logits).max()
    )
    for layer in range(2):
        for padded, plain in zip(session.keys_values(layer), exact.keys_values(layer), strict=True):
            assert np.allclose(padded, plain, atol=1e-4)


def test_a_short_context_has_a_short_window_again(gguf: Path, shapes: list[tuple[int, int, int]]) -> None:
    session = static_session(gguf, 1000)
    tokens = np.arange(600) % 250
    first = session.forward(tokens[:40], n_logits=4).logits.copy()
    session.forward(tokens[40:], n_logits=4)
    assert {window for _, window, _ in shapes} == {256, 1000 // 64 * 64 + 64}
    held = session.nbytes
    session.truncate(0)
    assert np.array_equal(session.forward(tokens[:40], n_logits=4).logits, first)
    assert session.nbytes < held


@pytest.mark.parametrize(("engine", "device"), [("onnx", "static"), ("openvino", "npu-emulated")])
def test_a_longer_window_gives_the_same_bits(gguf: Path, engine: str, device: str) -> None:
    backend = get(engine)
    if device not in backend.devices():
        pytest.skip(f"{engine} is not installed")
    tokens, rows = np.arange(60) % 250, []
    for window in (64, 256, 1024):
        options = {"windows": (window,)}
        folder = imported(gguf, form="onnx-static")
        weights = backend.open(open_model(folder), device=device, threads=2, kv_dtype=None, options=options)
        session = weights.session(window)
        session.forward(tokens[:40], n_logits=0)
        rows.append(session.forward(tokens[40:44], n_logits=4).logits.copy())
        weights.close()
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[1], rows[2])


def test_a_tree_wider_than_the_ladder_is_refused_before_anything_changes(gguf: Path) -> None:
    session = static_session(gguf)
    session.forward(np.arange(5), n_logits=0)
    with pytest.raises(OptionError, match=r"17 rows.*16 rows"):
        session.forward(np.arange(17), n_logits=17, parents=np.zeros(17, dtype=np.int64))
    assert len(session.positions) == 5
    session.forward(np.arange(16), n_logits=16, parents=np.zeros(16, dtype=np.int64))


def test_a_failing_step_leaves_the_cache_as_it_was(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilotfish.backends.onnx.fixed_shapes import OrtRunner

    session, other = static_session(gguf), static_session(gguf)
    tokens = np.arange(120) % 250
    for s in (session, other):
        s.forward(tokens[:10], n_logits=0)
    run, calls = OrtRunner.run, []

    def failing(self: OrtRunner, width: int, window: int, inputs: Any) -> Any:
        calls.append(width)
        if len(calls) == 2:
            raise EngineError("the device is gone")
        return run(self, width, window, inputs)

    monkeypatch.setattr(OrtRunner, "run", failing)
    with pytest.raises(EngineError, match="gone"):
        session.forward(tokens[10:110], n_logits=0)
    assert len(session.positions) == 10
    ours, theirs = (s.forward(tokens[10:14], n_logits=4).logits for s in (session, other))
    assert np.array_equal(ours, theirs)


def test_calibration_asks_for_the_ladder_only(gguf: Path, shapes: list[tuple[int, int, int]]) -> None:
    session = static_session(gguf, 256)
    found = calibrate(session)
    assert {width for width, _, _ in shapes} == {1, 4, 8, 16}
    assert sorted(w for c in found.rows.classes for w in c) == [1, 4, 8, 16]
    assert found.rows.free().widths == (1, 4, 8, 16)
    assert set(found.rows.rule().widths) <= {1, 4, 8, 16} and len(session.positions) == 0


def test_a_rule_on_a_ladder_holds_no_width_between_its_rungs() -> None:
    assert RowClasses(((1,), (4, 8, 16)), (1, 4, 8, 16)).rule().widths == (4, 8, 16)
    assert RowClasses(((1, 8, 16), (4,)), (1, 4, 8, 16)).rule().widths == (1, 8, 16)
    assert RowClasses(((1, 4, 8, 16),), (1, 4, 8, 16)).rule().fit(5) == 8
    assert RowClasses(((1,), (4, 8, 16))).rule().widths == tuple(range(4, 17))


PROMPT = "the cat and the hat and the cat and the hat and the cat and the hat and the"


@pytest.mark.parametrize("exact", [True, False])
def test_the_decode_loop_runs_widths_of_the_ladder_and_nothing_else(
    gguf: Path, shapes: list[tuple[int, int, int]], exact: bool
) -> None:
    texts = []
    for speculate in (False, True, Fixed(2), Fixed(9)):
        draft = gguf if isinstance(speculate, Fixed) else None  # itself: a random text repeats nothing
        options: dict[str, Any] = {"speculate": speculate, "draft": draft, "exact": exact}
        with pilotfish.load(gguf, engine="onnx", device="static", threads=1, **options) as model:
            shapes.clear()
            result = model.generate(PROMPT, raw=True, max_new_tokens=60)
            assert {width for width, _, _ in shapes} <= SHAPES
            allowed = {4, 8, 16} if exact else {1, 4, 8, 16}
            assert {r.width for r in result.rounds} <= allowed
            assert result.stats.device == "static" and result.stats.n_tokens > 0
            if isinstance(speculate, Fixed):
                assert result.stats.accepted > 0 and max(r.width for r in result.rounds) >= speculate.k + 1
            texts.append(result.token_ids)
    assert not exact or texts == texts[:1] * 4


@pytest.mark.parametrize(
    ("device", "package"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("dml", "onnxruntime-directml"),
        ("coreml", "macOS"),
        ("webgpu", "onnxruntime-ep-webgpu"),
        ("qnn", "onnxruntime-qnn"),
    ],
)
def test_a_device_that_is_not_here_names_the_package_that_has_it(gguf: Path, device: str, package: str) -> None:
    backend = get("onnx")
    if device in backend.devices():
        assert device in backend.notes()
        return
    with pytest.raises(OptionError, match=package):
        backend.open(open_model(imported(gguf, form="onnx-static")), device=device, threads=1, kv_dtype=None)
    with pytest.raises(OptionError, match="no device 'tpu'"):
        backend.open(open_model(imported(gguf, form="onnx-static")), device="tpu", threads=1, kv_dtype=None)


def test_every_device_says_whether_it_was_tested() -> None:
    backend = get("onnx")
    assert backend.devices()[:2] == ("cpu", "static")
    for device in backend.devices():
        assert backend.notes()[device].startswith(("tested", "untested"))


def test_another_provider_behind_the_users_back_is_an_error(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime does where a driver is missing: a session is made, and it is the CPU's."""
    made, seen = onnxruntime.InferenceSession, []

    def elsewhere(path: str, options: Any, providers: list[str], **_: object) -> Any:
        seen.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
        plain = onnxruntime.SessionOptions()
        return made(path, plain, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", elsewhere)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert "cuda" in get("onnx").devices()
    with pytest.raises(EngineError, match="CPUExecutionProvider instead of CUDAExecutionProvider"):
        get("onnx").open(open_model(imported(gguf, form="onnx-static")), device="cuda", threads=1, kv_dtype=None)
    assert seen == [(["CUDAExecutionProvider"], "1")]


@pytest.mark.real
def test_smollm2_speculates_on_fixed_shapes(shapes: list[tuple[int, int, int]]) -> None:
    prompt = "Repeat three times: The quick brown fox jumps over the lazy dog."
    results = []
    for speculate in (False, Fixed(7)):
        with pilotfish.load(smollm2(), engine="onnx", device="static", threads=2, speculate=speculate) as model:
            results.append(model.generate(prompt, max_new_tokens=48))
            assert {r.width for r in results[-1].rounds} <= {4, 8, 16}
    plain, drafted = results
    assert plain.token_ids == drafted.token_ids and len(plain.text) > 20
    assert drafted.stats.accepted > 5 and drafted.stats.n_rounds < plain.stats.n_rounds
    assert {width for width, _, _ in shapes} <= SHAPES
