"""Where the real SmolLM2 is, for tests marked `real`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilotfish.exporters.fetch import model_path


def smollm2() -> Path:
    """Its .gguf file: PILOTFISH_TEST_MODEL, or the one the product has fetched; else the test is skipped."""
    path = Path(os.environ.get("PILOTFISH_TEST_MODEL") or model_path("smollm2-135m"))
    if not path.is_file():
        pytest.skip("no SmolLM2: set PILOTFISH_TEST_MODEL or run `pilotfish pull smollm2-135m`")
    return path


def whisper() -> Path:
    """A Whisper tiny.en as CTranslate2 keeps it, or a Hugging Face folder of it: PILOTFISH_TEST_WHISPER; else the test
    is skipped."""
    path = Path(os.environ.get("PILOTFISH_TEST_WHISPER", ""))
    if not os.environ.get("PILOTFISH_TEST_WHISPER") or not path.is_dir():
        pytest.skip("no Whisper: set PILOTFISH_TEST_WHISPER to the folder of whisper-tiny.en")
    return path


def annalog() -> Path:
    """ANNalog's unpacked package, program and weights: PILOTFISH_TEST_ANNALOG; else the test is skipped."""
    path = Path(os.environ.get("PILOTFISH_TEST_ANNALOG", ""))
    if not (path / "ckpt_and_vocab" / "Lev_extended.pt").is_file():
        pytest.skip("no ANNalog: set PILOTFISH_TEST_ANNALOG to the folder that its package unpacks to")
    return path
