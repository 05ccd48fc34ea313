"""Drafts on real weights: SmolLM2 without some of its attention blocks drafts for the whole SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_weights import smollm2

import pilotfish
from pilotfish.drafts.make import onnx_bundle
from pilotfish.runtime.files.bundle import open_bundle
from pilotfish.runtime.speculation.draft_length import Fixed

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = [pytest.mark.real, pytest.mark.slow]

SKIPPED = (10, 12, 34, 50)  # attention 5, 6, 17 and 25: what a search found; 0.89 of unseen answers are the same
PROMPTS = ("Write a short poem about the sea.", "Write a Python function that adds two numbers.")


def test_smollm2_without_four_blocks_is_a_good_draft_over_the_same_weights(tmp_path: Path) -> None:
    from pilotfish.exporters.onnx.dropped_bundle import write_dropped

    source = onnx_bundle(smollm2(), lambda what, share: None)
    draft = write_dropped(source, tmp_path / "draft", SKIPPED)
    assert open_bundle(draft).manifest.recipe["dropped"] == "attention 5, attention 6, attention 17, attention 25"
    own = [path for path in draft.iterdir() if path.stat().st_nlink == 1]
    if len(own) < len(list(draft.iterdir())):  # there are hard links here
        assert sum(path.stat().st_size for path in own) < 1 << 20
    options = {"draft": draft, "speculate": Fixed(4), "proposers": (), "max_context": 1024}
    with pilotfish.load(source, "onnx", threads=2, **options) as model, model.sibling(policy=None) as plain:
        drafted = accepted = 0
        for prompt in PROMPTS:
            result = model.generate(prompt, max_new_tokens=64)
            assert result.token_ids == plain.generate(prompt, max_new_tokens=64).token_ids
            drafted, accepted = drafted + result.stats.drafted, accepted + result.stats.accepted
    assert accepted > 0.5 * drafted


def test_a_draft_with_another_vocabulary_changes_no_token_of_smollm2(tmp_path: Path) -> None:
    from pilotfish.testing.tiny_models import tiny_gguf

    other = tiny_gguf(tmp_path / "tiny.gguf")
    options = {"draft": other, "speculate": Fixed(3), "proposers": (), "max_context": 1024}
    with pilotfish.load(smollm2(), "onnx", threads=2, **options) as model, model.sibling(policy=None) as plain:
        assert model.draft is not None and model.draft.pairing is not None
        assert model.draft.pairing.kind == "mapped" and 200 < model.draft.pairing.n_shared < 300
        for prompt in (*PROMPTS, "Répète : naïve, 東京, 🐟."):
            result = model.generate(prompt, max_new_tokens=32)
            assert result.stats.drafted >= 9  # never right, so it soon rests
            assert result.token_ids == plain.generate(prompt, max_new_tokens=32).token_ids
