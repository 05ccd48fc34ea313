"""Models that every engine runs in no time, and whether an engine is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilotfish.backends import get
from pilotfish.testing.tiny_models import Sizes, tiny_gguf


def need(engine: str) -> None:
    """Skip the test where the engine is not installed."""
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")


def tiny_file(folder: Path, context: int) -> Path:
    """A file of small weights with heads that compressed caches of every engine can hold."""
    sizes = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, context=context)
    return tiny_gguf(folder / "tiny.gguf", quant="Q8_0", sizes=sizes, seed=10)
