"""A cache in int8 on ONNX Runtime: a quarter of the memory, drafts as exact as ever, nearly the same model."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from model_files import imported
from real_weights import smollm2

import pilotfish
from pilotfish.backends import get
from pilotfish.backends.common.weights import LoadedWeights
from pilotfish.backends.onnx.loaded_model import OrtModel
from pilotfish.backends.onnx.session import OrtSession
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.scoring import logits_along
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Tokens
from pilotfish.runtime.sampling.log_softmax import log_softmax
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.storage import cache_dir
from pilotfish.runtime.text.calibration_text import TEXT
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

pytestmark = pytest.mark.usefixtures("module_cache")
PROSE = Path(__file__).resolve().parents[3] / "docs" / "kv-cache.md"
TABLES = PROSE.parent / "benchmarks" / "kv-cache.md"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, context=1024)
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q8_0", sizes=sizes, seed=10)


def test_it_is_a_quarter_of_the_memory_and_holds_the_same_keys(path: Path) -> None:
    folder = imported(path, activations="f32")
    full, small = (
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=kind) for kind in ("f32", "int8")
    )
    one, other = full.session(600), small.session(600)
    tokens: Tokens = np.random.default_rng(3).integers(0, full.info.vocab_size, 520)
    for session in (one, other):
        session.forward(tokens, n_logits=0)
    assert 4 * other.nbytes == one.nbytes
    for layer in range(full.info.n_layers):
        for exact, stored in zip(one.keys_values(layer), other.keys_values(layer), strict=True):
            assert stored.dtype == np.float32 and stored.shape == exact.shape
            largest = np.abs(exact).max()
            assert np.abs(exact - stored)[:, :256].max() < (0.02 if layer == 0 else 0.2) * largest
            assert np.abs(exact).max() * 0.9 < np.abs(stored).max() < largest * 1.1, "clipped"
    assert "kv-int8" in small.info.settings and "kv-int8" not in full.info.settings
    with pytest.raises(OptionError, match="saved by another"):
        other.restore(one.save())
    scaled = LoadedWeights(OrtModel(open_bundle(folder), "cpu", 1, 2 * small.model.scales), OrtSession)  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="saved by another"):
        scaled.session(600).restore(other.save())
    scaled.close()
    for weights in (full, small):
        weights.close()


def test_its_scales_are_measured_once_and_damage_is_mended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = imported(path, activations="f32")

    def logits() -> tuple[np.ndarray, bool]:  # type: ignore[type-arg]
        measured = []
        from pilotfish.backends.onnx import session as ort_session

        keys = ort_session.OrtSession.keys_values
        with monkeypatch.context() as patch:
            patch.setattr(
                ort_session.OrtSession, "keys_values", lambda self, layer: measured.append(layer) or keys(self, layer)
            )
            weights = get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype="int8")
        step = weights.session(64).forward(np.arange(20), n_logits=20).logits.copy()
        weights.close()
        return step, bool(measured)

    first, _ = logits()
    again, measured = logits()
    assert not measured and np.array_equal(first, again)
    (file,) = (cache_dir() / "kv-scales").iterdir()
    for damage in (b"", b"{}", file.read_bytes()[:-40], file.read_bytes().replace(b"0.", b"-0.")):
        file.write_bytes(damage)
        mended, measured = logits()
        assert measured and np.array_equal(first, mended)


def test_its_scales_hold_what_text_brings(path: Path) -> None:
    """And what tokens without order bring: neither spreads as far as the other in every channel."""
    folder = imported(path, activations="f32")
    full, small = (
        get("onnx").open(open_model(folder), device=None, threads=1, kv_dtype=kind) for kind in ("f32", "int8")
    )
    session, held = full.session(1024), 127 * small.model.scales  # type: ignore[attr-defined]
    text = open_model(folder).tokenizer.encode(TEXT)[:1024]
    for tokens in (text, np.random.default_rng(0).integers(0, full.info.vocab_size, 512)):
        session.truncate(0)
        session.forward(tokens, n_logits=0)
        for layer in range(full.info.n_layers):
            for largest, x in zip(held[2 * layer :], session.keys_values(layer), strict=False):
                assert (np.abs(x).max(axis=1) < 0.9 * largest).all()
    for weights in (full, small):
        weights.close()


@pytest.mark.parametrize(
    ("kv_dtype", "words"), [("int4", "38 %"), ("f16", "slower than in f32"), ("u8", "f32, or in int8")]
)
def test_other_types_are_refused_with_the_reason(kv_dtype: str, words: str, path: Path) -> None:
    with pytest.raises(OptionError, match=words):
        pilotfish.load(path, "onnx", kv_dtype=kv_dtype)


@pytest.mark.parametrize(
    "settings", [{}, {"cache": "keydiff:budget=64,every=32"}, {"cache": "snapkv:budget=64,every=32"}]
)
def test_drafts_change_nothing(settings: dict[str, str], path: Path) -> None:
    prompt = "the cat and the dog and the hen in the pen " * 6
    with (
        pilotfish.load(path, "onnx", kv_dtype="int8", threads=1, **settings) as model,  # type: ignore[arg-type]
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4)) as drafting,
    ):
        ours, theirs = (m.generate(prompt, max_new_tokens=64) for m in (drafting, plain))
        assert ours.token_ids == theirs.token_ids and ours.stats.drafted > 0


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["\n".join(topics.values()), TABLES.read_text(encoding="utf-8")], ids=["manual", "tables"]
)
def test_real_weights_lose_next_to_nothing(text: str) -> None:
    """On a text that the scales have not seen; activations are exact, as rounding them turns any change into 0.0036."""
    folder = imported(smollm2(), activations="f32")
    tokens = open_model(folder).tokenizer.encode(text)[:1536]
    distributions = []
    for kind in ("f32", "int8"):
        weights = get("onnx").open(open_model(folder), device=None, threads=2, kv_dtype=kind)
        along = logits_along(CachedSequence(weights.session(1600)), tokens, 1024)
        distributions.append(np.concatenate([log_softmax(logits, np.float32) for _, logits in along]))
        weights.close()
    kl = (np.exp(distributions[0]) * (distributions[0] - distributions[1])).sum(axis=1).mean()
    assert kl < 0.004, "nats a token"


@pytest.mark.real
@pytest.mark.slow
def test_drafts_change_nothing_on_real_weights() -> None:
    prompt = PROSE.read_text(encoding="utf-8")[:3000] + "\n\nSummarise this."
    with (
        pilotfish.load(smollm2(), "onnx", kv_dtype="int8", threads=2) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4)) as drafting,
    ):
        ours, theirs = (m.generate(prompt, max_new_tokens=96) for m in (drafting, plain))
        assert ours.token_ids == theirs.token_ids and ours.stats.accepted > 0
