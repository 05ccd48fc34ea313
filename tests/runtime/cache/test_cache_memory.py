"""Memory of what was evicted goes back: what a session holds afterwards is what it would have taken from the start."""

from __future__ import annotations

import numpy as np
import pytest
from model_files import imported

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Session, Weights
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

SIZES = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, context=4096)
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "llamacpp": "llama_cpp"}


@pytest.fixture(scope="module", params=PACKAGES)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    pytest.importorskip(PACKAGES[request.param])
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(folder / "cache"))
        path = tiny_gguf(folder / "tiny.gguf", quant="Q8_0", sizes=SIZES, seed=10)
        if request.param == "onnx":
            path = imported(path)
        return get(request.param).open(open_model(path), device=None, threads=1, kv_dtype=None)


def filled(session: Session, n: int) -> Session:
    tokens = np.random.default_rng(3).integers(0, session.info.vocab_size, n)
    for start in range(0, n, 256):
        session.forward(tokens[start : start + 256], n_logits=0)
    return session


def test_keeping_an_eighth_gives_the_rest_back(weights: Weights) -> None:
    session = filled(weights.session(4096), 4032)
    full = session.nbytes
    kept = np.sort(np.random.default_rng(4).permutation(4032)[:500])
    session.keep(kept)
    assert session.positions.tolist() == kept.tolist()
    assert 7 * session.nbytes <= full
    answers = []
    for one in (session, other := session.fork(max_context=4096)):
        answers.append(one.forward(np.arange(40), n_logits=40).logits.copy())
    assert np.isfinite(answers[0]).all() and np.array_equal(*answers)
    for one in (session, other):
        one.close()


def test_a_small_session_beside_a_large_one_takes_its_share_alone(weights: Weights) -> None:
    """As a policy opens it: no engine makes more room than the entries that it will ever hold."""
    small = weights.session(512)
    filled(small, 512)
    per_entry = small.nbytes / 512
    large = filled(weights.session(4096), 4032)
    assert large.nbytes <= 4096 * per_entry * 1.05 and small.nbytes <= 512 * per_entry * 1.05
    large.close()
    assert small.nbytes <= 512 * per_entry * 1.05
    small.close()
