"""GGUF to ONNX: the graph computes what the reference engine computes, for every form a model can take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_files import imported

from pilotfish.backends.reference import backend as reference
from pilotfish.exporters.onnx.import_model import Activations
from pilotfish.runtime.errors import CacheWriteError, ContextFullError, EngineError, UnsupportedModelError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Session
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.testing.tiny_models import K_SIZES, Sizes, tiny_gguf

ort = pytest.importorskip("pilotfish.backends.onnx.backend")
pytest.importorskip("onnxruntime")

TOKENS = np.random.default_rng(7).integers(0, 270, 60)
F32_NOISE = 1e-5  # relative to the largest value: sums in another order


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def judge(gguf: Path) -> Session:
    return reference.BACKEND.open(open_model(gguf), device=None, threads=1, kv_dtype=None).session()


def engine(gguf: Path, activations: Activations = "f32", max_context: int | None = None) -> Session:
    folder = imported(gguf, activations=activations)
    weights = ort.BACKEND.open(open_model(folder), device=None, threads=2, kv_dtype=None)
    session: Session = weights.session(max_context)
    return session


def relative(ours: Floats, theirs: Floats) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def mixed(name: str) -> str:
    """As Q4_K_M mixes them, and types that cannot be multiplied together."""
    if "attn_v" in name or "ffn_down" in name:
        return "Q6_K"
    return {"token_embd.weight": "Q8_0", "output.weight": "F16"}.get(name, "Q4_K")


UNTIED = {"tied": False}
FORMS: dict[str, dict[str, object]] = {
    **{f"llama {q}": {"quant": q} for q in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32", "BF16", "IQ4_NL")},
    **{f"llama {q}": {"quant": q, "sizes": K_SIZES, **UNTIED} for q in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")},
    "qwen2 Q4_1 tied": {"architecture": "qwen2"},
    "qwen2 Q5_0": {"architecture": "qwen2", "quant": "Q5_0", **UNTIED},
    "qwen2 mixed": {"architecture": "qwen2", "quant": mixed, "sizes": K_SIZES, **UNTIED},
    "llama mixed": {"quant": mixed, "sizes": K_SIZES},
    "odd number of blocks": {"sizes": Sizes(hidden=96, heads=6, ffn=160)},
    "head_dim of its own": {"sizes": Sizes(hidden=64, heads=4, kv_heads=1, head_dim=32), **UNTIED},
    "no grouped heads": {"sizes": Sizes(kv_heads=4)},
    "linear rope scaling": {"metadata": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
    "rope factors": {"rope_factors": np.linspace(1.0, 8.0, 8, dtype=np.float32)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_parity_with_the_reference(tmp_path: Path, form: dict[str, object]) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf", **form)  # type: ignore[arg-type]
    ours, theirs = engine(gguf), judge(gguf)
    observe = frozenset({"hidden", "queries"})
    worst, start = 0.0, 0
    for width in (40, 1, 2, 5, 3):
        a, b = (s.forward(TOKENS[start : start + width], n_logits=width, observe=observe) for s in (ours, theirs))
        assert a.hidden is not None and b.hidden is not None and a.queries is not None and b.queries is not None
        pairs = [(a.logits, b.logits), (a.hidden, b.hidden), (a.queries, b.queries)]
        worst = max(worst, *(relative(x, y) for x, y in pairs))
        start += width
    if "IQ4_NL" in str(form) or ("_K" in str(form.get("quant")) and form["quant"] in ("Q2_K", "Q3_K")):
        assert 1e-4 < worst < 0.1  # requantized, and told so
        report = open_bundle(imported(gguf, activations="f32")).manifest.report
        assert report["requantized_tensors"] > 0 and 0 < max(v for k, v in report.items() if "loss" in k) < 0.01
    else:
        assert worst < F32_NOISE
    for layer in range(2):
        for x, y in zip(ours.keys_values(layer), theirs.keys_values(layer), strict=True):
            assert relative(x, y) < max(F32_NOISE, worst)


def test_int8_activations_are_near_and_say_so(tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf")
    ours = engine(gguf, "int8")
    a, b = (s.forward(TOKENS, n_logits=60).logits for s in (ours, judge(gguf)))
    assert 1e-3 < float(np.linalg.norm(a - b) / np.linalg.norm(b)) < 0.1
    assert ours.info.settings == "int8"
    assert engine(gguf, "f32").info.digest != ours.info.digest


def test_an_evicted_entry_is_a_masked_entry(tmp_path: Path) -> None:
    """Not through keep(): the graph itself, once with entries gone and once with all there and a bias of -inf."""
    gguf = tiny_gguf(tmp_path / "m.gguf", seed=3)
    evicted, masked = engine(gguf), engine(gguf)
    for session in (evicted, masked):
        session.forward(TOKENS[:30], n_logits=0)
    kept = np.flatnonzero(np.arange(30) % 3 != 1)
    evicted.keep(kept)
    hidden = np.ones(34, dtype=bool)
    hidden[kept] = hidden[30:] = False
    bias = np.where(hidden, -np.inf, 0.0).astype(np.float32)
    zeros = masked._bias  # type: ignore[attr-defined]
    masked._bias = lambda *shape: zeros(*shape) + bias  # type: ignore[attr-defined]
    ours, theirs = (s.forward(TOKENS[30:34], n_logits=4).logits for s in (evicted, masked))
    assert relative(ours, theirs) < F32_NOISE
    whole = judge(gguf)
    assert relative(ours, whole.forward(TOKENS[:34], n_logits=4).logits) > 1e-3  # so the entries did matter


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_no_width_leaves_one_row_over(tmp_path: Path, activations: Activations) -> None:
    """Attention had tiles of 2 head_dim rows before they were off; matrices have tiles of 128 where there are threads.

    A row alone in the last one comes out as a step of one row, with f32 activations on every processor.
    """
    session = engine(tiny_gguf(tmp_path / "m.gguf"), activations)
    tokens = np.random.default_rng(1).integers(0, 270, 520)
    expected = np.concatenate(
        [session.forward(tokens[i : i + 10], n_logits=10).logits.copy() for i in range(0, 520, 10)]
    )
    for width in (31, 32, 33, 34, 64, 65, 97, 128, 129, 130, 256, 257, 385, 513):
        session.truncate(0)
        assert np.array_equal(session.forward(tokens[:width], n_logits=width).logits, expected[:width]), width
    session.truncate(0)
    rows = session.forward(tokens[:200], n_logits=129).logits
    assert np.array_equal(rows, expected[71:200]), "nor do rows of logits"


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_one_row_is_a_class_of_its_own_whatever_a_probe_sees(tmp_path: Path, activations: Activations) -> None:
    """Int8 activations round the bits of its attention away, in the few tokens of a probe and not in all others."""
    folder = imported(tiny_gguf(tmp_path / "m.gguf"), activations=activations)
    weights = ort.BACKEND.open(open_model(folder), device=None, threads=1, kv_dtype=None)
    classes = calibrate(weights.session(256)).rows
    assert weights.info.alike_from == 2 and classes.classes[0] == (1,) and classes.rule().minimum == 2
    weights.close()


def test_a_spare_row_is_in_nobodys_way(tmp_path: Path) -> None:
    """The row beside one that would be alone: in a full cache, in a tree, where one observes, before another step."""
    gguf, tokens = tiny_gguf(tmp_path / "m.gguf"), np.random.default_rng(1).integers(0, 270, 140)
    full, session = engine(gguf, max_context=129), engine(gguf)
    observe = frozenset({"hidden", "queries"})
    expected = session.forward(tokens[:130], n_logits=130, observe=observe)
    assert expected.hidden is not None and expected.queries is not None
    logits = expected.logits.copy()
    parents = np.arange(-1, 128).clip(0)
    for chain_or_tree in (None, parents):
        full.truncate(0)
        step = full.forward(tokens[:129], n_logits=129, parents=chain_or_tree, observe=observe)
        assert step.hidden is not None and step.queries is not None
        assert full.positions.tolist() == list(range(129))
        assert np.array_equal(step.logits, logits[:129])
        assert np.array_equal(step.hidden, expected.hidden[:129])
        assert np.array_equal(step.queries, expected.queries[:, :, :129])
    following = session.forward(tokens[130:135], n_logits=5).logits.copy()
    session.truncate(0)
    session.forward(tokens[:129], n_logits=0)
    session.forward(tokens[129:131], n_logits=0)
    assert np.array_equal(session.forward(tokens[131:135], n_logits=4).logits, following[1:])


def test_positions_end_where_the_model_ends(tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf", sizes=Sizes(context=40))
    for session in (engine(gguf, max_context=40), judge(gguf)):
        session.forward(TOKENS[:40], n_logits=0)
        session.keep(np.arange(20, 40))
        with pytest.raises(ContextFullError, match=r"positions up to 41.*knows 40"):
            session.forward(TOKENS[40:42], n_logits=1)
        assert session.positions.tolist() == list(range(20, 40))


def test_growing_moves_nothing(tmp_path: Path) -> None:
    session = engine(tiny_gguf(tmp_path / "m.gguf"))
    tokens = np.random.default_rng(1).integers(0, 270, 1400)
    sizes, seen = [session.nbytes], []
    for i in range(0, 1400, 50):
        seen.append(session.forward(tokens[i : i + 50], n_logits=50).logits.copy())
        sizes.append(session.nbytes)
    assert sizes == sorted(sizes) and len(set(sizes)) >= 3
    assert session.nbytes <= 2 * 2 * 2 * 16 * 4 * 2 * 1400  # layers, keys and values, heads, head_dim, bytes; twice
    whole = engine(tmp_path / "m.gguf").forward(tokens, n_logits=1400).logits
    assert np.array_equal(np.concatenate(seen), whole)


def test_no_memory_to_grow_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = engine(tiny_gguf(tmp_path / "m.gguf"))
    tokens = np.random.default_rng(1).integers(0, 270, 600)
    session.forward(tokens[:500], n_logits=0)

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", full)
        with pytest.raises(EngineError, match=r"no memory for a cache of \d+ entries.*max_context"):
            session.forward(tokens[500:], n_logits=1)
    assert session.positions.tolist() == list(range(500))
    ours = session.forward(tokens[500:], n_logits=2).logits
    assert np.array_equal(ours, engine(tmp_path / "m.gguf").forward(tokens, n_logits=2).logits)


def test_a_failing_engine_leaves_the_session_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = engine(tiny_gguf(tmp_path / "m.gguf"))
    session.forward(TOKENS[:10], n_logits=0)
    runner = session._model.runner(False)  # type: ignore[attr-defined]

    def fail(binding: object) -> None:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_with_iobinding", fail)
        with pytest.raises(EngineError, match="device lost"):
            session.forward(TOKENS[10:15], n_logits=1)
    assert session.positions.tolist() == list(range(10))
    ours = session.forward(TOKENS[10:15], n_logits=5).logits
    assert np.array_equal(ours, engine(tmp_path / "m.gguf").forward(TOKENS[:15], n_logits=15).logits[10:])


def nodes(gguf: Path) -> Counter[str]:
    model = onnx.load(imported(gguf) / "model.onnx", load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def test_projections_are_fused_and_a_residual_costs_only_where_there_is_one(tmp_path: Path) -> None:
    plain = nodes(tiny_gguf(tmp_path / "q4_0.gguf", quant="Q4_0"))
    assert plain["MatMulNBits"] == 4 * 2 + 1  # qkv, output, gate and up, down; the head
    assert plain["MatMul"] == 0 and plain["GroupQueryAttention"] == 2
    residual = nodes(tiny_gguf(tmp_path / "q4_1.gguf", quant="Q4_1"))
    assert residual["MatMulNBits"] == plain["MatMulNBits"]
    assert residual["Gemm"] == 4 * 2 + 1  # a residual for every product
    assert residual["MatMul"] == 4 * 2 + 1  # block sums, once for every distinct input
    assert plain["Add"] == 0 and residual["Add"] == 1  # the residual of the looked-up embedding
    biased = nodes(tiny_gguf(tmp_path / "qwen2.gguf", architecture="qwen2", quant="Q8_0"))
    assert biased["Add"] == 0 and biased["MatMulNBits"] == plain["MatMulNBits"]


def test_a_bundle_is_built_once_and_damage_is_mended(tmp_path: Path, own_cache: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf")
    seen: list[float] = []
    folder = imported(gguf, progress=lambda what, share: seen.append(share))
    assert seen == sorted(seen) and seen[-1] == 1.0
    made = (folder / "model.onnx").stat().st_mtime_ns
    assert imported(gguf) == folder and (folder / "model.onnx").stat().st_mtime_ns == made
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    assert imported(gguf) == folder
    assert (folder / "model.onnx").stat().st_mtime_ns > made
    assert (folder / "model.onnx.data").read_bytes()[100] == data[100] ^ 1
    assert imported(gguf, activations="f32") != folder


def test_what_cannot_be_imported_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf", metadata={"nextn_predict_layers": 1})
    with pytest.raises(UnsupportedModelError, match="layers that predict several tokens"):
        imported(gguf)
    assert not list(own_cache.glob("bundles/*"))


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[int], None]
) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf", sizes=Sizes(layers=4))
    full_disk(100_000)
    with pytest.raises(CacheWriteError, match="the disk is full"):
        imported(gguf)
    assert not list(own_cache.glob("bundles/*")) and not list(own_cache.glob("bundles/.*"))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A disk on which a file may not grow beyond so many bytes."""
    import errno

    from pilotfish.exporters.onnx.writer import OnnxWriter

    def fill(limit: int) -> None:
        class Full:
            def __init__(self, file: object) -> None:
                self.file = file

            def write(self, data: bytes) -> int:
                if self.file.tell() + len(data) > limit:  # type: ignore[attr-defined]
                    raise OSError(errno.ENOSPC, "No space left on device")
                return self.file.write(data)  # type: ignore[attr-defined,no-any-return]

            def tell(self) -> int:
                return self.file.tell()  # type: ignore[attr-defined,no-any-return]

        init = OnnxWriter.__init__
        monkeypatch.setattr(OnnxWriter, "__init__", lambda self, data, name: init(self, Full(data), name))  # type: ignore[arg-type]

    return fill
