"""Mixtures of experts as llama.cpp computes them, from the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expert_files import MIXTURES
from family_files import VOCAB_SIZE, random_family

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model

pytest.importorskip("llama_cpp")
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 60)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_reference_computes_what_llama_cpp_does(name: str, tmp_path: Path) -> None:
    path, found = random_family(name, tmp_path / "m.gguf"), []
    for engine, kv_dtype in (("llamacpp", "f32"), ("reference", None)):
        session = get(engine).open(open_model(path), device=None, threads=2, kv_dtype=kv_dtype).session(64)
        found.append(session.forward(TOKENS, n_logits=len(TOKENS)).logits.copy())
    theirs, ours = found
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
