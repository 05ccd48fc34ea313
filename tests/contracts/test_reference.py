"""The judge passes the engine contract itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pilotfish.backends import get
from pilotfish.runtime.files.open_model import open_model
from pilotfish.testing import CHECKS, Subject

NOISE = 2e-5  # sums in another order


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("model", "options"), [("llama", {}), ("qwen2", {"stream": True})], ids=["held", "streamed"])
def test_contract(
    model: str, options: dict[str, object], check: Callable[[Subject], None], models: dict[str, Path]
) -> None:
    backend = get("reference")
    check(
        Subject(
            lambda: backend.open(open_model(models[model]), device=None, threads=1, kv_dtype=None, options=options),
            NOISE,
        )
    )
