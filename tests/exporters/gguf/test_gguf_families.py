"""Families read from .gguf files: what the reference engine computes is what transformers computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from family_files import MADE, VOCAB_SIZE, tiny_of, write_family  # noqa: E402

from pilotfish.backends import get  # noqa: E402
from pilotfish.runtime.files import decoder_shape  # noqa: E402
from pilotfish.runtime.files.decoder_families import FAMILIES  # noqa: E402
from pilotfish.runtime.files.open_model import open_model  # noqa: E402
from pilotfish.runtime.interfaces import Floats  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 60)
_ROPES = MADE["gemma4"].settings["rope_parameters"]
_WHOLE = {**_ROPES, "full_attention": {**_ROPES["full_attention"], "partial_rotary_factor": 1.0}}
NOISE = 1e-5  # of the largest logit: sums in another order


def transformers_logits(name: str, **changes: object) -> Floats:
    with torch.no_grad():
        found: Floats = tiny_of(name, **changes)(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return found


def reference_logits(path: Path) -> Floats:
    """In two steps, so that the cache is read back."""
    session = get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None).session()
    first = session.forward(TOKENS[:40], n_logits=40).logits
    return np.concatenate([first, session.forward(TOKENS[40:], n_logits=20).logits])


@pytest.mark.parametrize("name", MADE)
def test_the_reference_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    expected = transformers_logits(name)
    found = reference_logits(write_family(name, tiny_of(name), tmp_path / "m.gguf"))
    assert np.abs(found - expected).max() < NOISE * np.abs(expected).max()


def test_scores_of_the_largest_gemma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognized by its number of layers alone; its config.json says query_pre_attn_scalar."""
    family = replace(FAMILIES["gemma2"], wide_scale_layers=3)
    monkeypatch.setattr(decoder_shape, "FAMILIES", {"gemma2": family})
    scalar = {"query_pre_attn_scalar": 16}  # 64 numbers a row over 4 heads
    found = reference_logits(write_family("gemma2", tiny_of("gemma2", **scalar), tmp_path / "m.gguf"))
    expected = transformers_logits("gemma2", **scalar)
    assert np.abs(found - expected).max() < NOISE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0}),
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("gemma2", {"sliding_window": 200}),
        ("gemma3", {"sliding_window": 200}),
        ("gemma3", {"query_pre_attn_scalar": 64}),
        ("gemma4", {"sliding_window": 200}),
        ("gemma4", {"final_logit_softcapping": 30.0}),
        ("gemma4", {"rope_parameters": _WHOLE}),
        ("phi3 with a window", {"sliding_window": 200}),
        (
            "mistral3",
            {"rope_parameters": {**MADE["mistral3"].settings["rope_parameters"], "llama_4_scaling_beta": 0.0}},
        ),
        ("granite", {"embedding_multiplier": 1.0}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"attention_multiplier": 0.25}),
        ("smollm3", {"no_rope_layers": [1] * 5}),
        ("qwen3 yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ("phi3 longrope", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ],
    ids=str,
)
def test_what_is_compared_matters(name: str, changes: dict[str, object]) -> None:
    """Each setting moves the logits of these models by far more than what the comparison above lets pass."""
    usual, other = transformers_logits(name), transformers_logits(name, **changes)
    assert np.abs(usual - other).max() > 1000 * NOISE * np.abs(usual).max()
