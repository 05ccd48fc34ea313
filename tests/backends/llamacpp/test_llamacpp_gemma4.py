"""Gemma 4 on llama.cpp: our own engines and its own graph compute the same of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_files import VOCAB_SIZE, random_family
from folders import folder_of

import pilotfish
from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats

pytestmark = [
    pytest.mark.usefixtures("module_cache"),
    pytest.mark.skipif(get("llamacpp").version() is None, reason="llama-cpp-python is not installed"),
]
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 60)
GELU_TABLE = 5e-3  # llama.cpp looks its GELU up in halves


def logits(engine: str, path: Path) -> Floats:
    """In two steps, so that the cache is read back beyond the window."""
    session = get(engine).open(open_model(path), device=None, threads=1, kv_dtype="f32").session(128)
    first = session.forward(TOKENS[:40], n_logits=40).logits.copy()
    return np.concatenate([first, session.forward(TOKENS[40:], n_logits=20).logits])


@pytest.mark.parametrize("name", ["gemma4", "gemma4 without layer inputs"])
def test_a_file_means_the_same_to_llama_cpp(name: str, tmp_path: Path) -> None:
    path = random_family(name, tmp_path / "m.gguf", quant="F32")
    ours, theirs = logits("reference", path), logits("llamacpp", path)
    assert np.abs(ours - theirs).max() < GELU_TABLE * np.abs(ours).max()


def test_a_folder_is_written_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    path = random_family("gemma4", tmp_path / "m.gguf", quant="F32")
    folder = folder_of("gemma4", path, tmp_path / "f")
    with pilotfish.load(folder, "llamacpp", threads=1) as model, pilotfish.load(path, "llamacpp", threads=1) as other:
        ours, theirs = (m.generate("the hello and", raw=True, max_new_tokens=16) for m in (model, other))
        assert ours.token_ids == theirs.token_ids and ours.token_ids
