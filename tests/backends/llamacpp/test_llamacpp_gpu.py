"""Layers of llama.cpp on a GPU, real or rasterised in software: slow, and only where ggml has one.

A software rasteriser shows itself to ggml where GGML_VK_VISIBLE_DEVICES=0 is set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

BACKEND = get("llamacpp")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(BACKEND.devices()) < 2, reason="needs a build of llama.cpp with a GPU"),
]
SIZES = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256)


def logits(path: Path, device: str, **options: object) -> Floats:
    weights = BACKEND.open(open_model(path), device=device, threads=2, kv_dtype=None, options=options)
    session = weights.session(256)
    try:
        assert weights.info.device == device
        session.forward(np.arange(12), n_logits=0)
        session.forward(np.arange(3), n_logits=0)
        session.truncate(12)
        return session.forward(np.arange(20, 24), n_logits=4).logits.copy()
    finally:
        session.close()
        weights.close()


@pytest.mark.parametrize("options", [{}, {"n_gpu_layers": 1}, {"flash_attention": "off"}])
def test_layers_on_a_gpu_give_the_processors_answers(tmp_path: Path, options: dict[str, object]) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", sizes=SIZES, quant="Q4_0")
    ours, theirs = logits(path, BACKEND.devices()[1], **options), logits(path, "cpu")
    assert np.abs(ours - theirs).max() <= 0.1 * np.abs(theirs).max()  # other kernels, int8 activations or none
