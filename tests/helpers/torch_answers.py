"""What exports of tiny models are compared with: torch's own answers to a random text; and bundles of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tiny_families import VOCAB_SIZE, tiny

from pilotfish.runtime.files.bundle import Manifest, Source, describe_files, write_manifest
from pilotfish.runtime.interfaces import Floats, Tokens, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOWS = {"gemma2": 8, "gemma3_text": 8, "mistral": 48}  # of tiny_families
BY_LAYER = {"gemma2", "gemma3_text", "smollm3"}  # whose models take a mask for each kind of layer


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


def check_chunks_and_rollback(weights: Weights, model: PreTrainedModel, most: float) -> None:
    """Widths across a window and across blocks of 32, and a second end after the first is taken back."""
    tokens, other = text(100), text(40, seed=2)
    for widths in ((1, 30, 7, 2, 60), (64, 36), (5,) * 20):
        session = weights.session()
        rows, at = [], 0
        for width in widths:
            rows.append(session.forward(tokens[at : at + width], n_logits=width).logits.copy())
            at += width
        assert distance(np.concatenate(rows), logits_in_torch(model, tokens)) < most
        session.truncate(75)
        again = session.forward(other, n_logits=len(other)).logits
        expected = logits_in_torch(model, np.concatenate([tokens[:75], other]))[75:]
        assert distance(again, expected) < most
        session.close()


class MadeOnce:
    """Bundles by family and form. export: writes a form of a model into a folder, and says how it is stored."""

    def __init__(
        self,
        new_folder: Callable[[str], Path],
        formats: dict[str, str],
        export: Callable[[PreTrainedModel, Path, str], dict[str, str]],
    ) -> None:
        self._new_folder, self._formats, self._export = new_folder, formats, export
        self._made: dict[tuple[str, str], Path] = {}

    def __call__(self, family: str, form: str) -> Path:
        if (family, form) not in self._made:
            folder, model = self._new_folder(f"{family}-{form}"), tiny(family)
            seal(folder, model, self._formats, self._export(model, folder, form))
            self._made[family, form] = folder
        return self._made[family, form]


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
