"""What exports of tiny models are compared with: torch's own answers to a random text; and bundles of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tiny_families import VOCAB_SIZE

from pilotfish.runtime.files.bundle import Manifest, Source, describe_files, write_manifest
from pilotfish.runtime.interfaces import Floats, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOWS = {"gemma3_text": 8, "mistral": 48}  # of tiny_families


def text(n: int = 70, seed: int = 1) -> Tokens:
    """Random tokens, none of them special."""
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, n)


def logits_in_torch(model: PreTrainedModel, tokens: Tokens, mask: Any = None) -> Floats:
    """Logits after each token, (n, vocab_size)."""
    import torch

    with torch.no_grad():
        found: Floats = model(torch.from_numpy(tokens)[None], attention_mask=mask).logits[0].numpy()
    return found


def distance(ours: Floats, theirs: Floats) -> float:
    """The largest difference over the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def seal(folder: Path, model: PreTrainedModel, formats: dict[str, str], recipe: dict[str, str]) -> None:
    """Make a bundle of a folder that an exporter wrote into."""
    manifest = Manifest(
        model_id="tiny",
        architecture=model.config.model_type,
        context_length=model.config.max_position_embeddings,
        source=Source(name="tiny", sha256="0" * 64, format="huggingface"),
        files=describe_files(folder),
        formats=formats,
        recipe=recipe,
    )
    write_manifest(folder, manifest)
