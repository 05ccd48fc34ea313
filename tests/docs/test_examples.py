"""Every example runs as its reader would run it, on a tiny model instead of a fetched one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilotfish.testing.tiny_models import tiny_gguf

pytest.importorskip("onnxruntime")
EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {  # what each example prints where it works
    "generate": ("[length: 64 tokens at ", "the same for this seed every time"),
    "stream": ("rounds for 80 tokens",),
    "chat": ("> Which of them can swim?", "still in the cache", "5 messages remembered"),
    "cancel": ("cancelled after", "the next answer: 16 tokens"),
    "length_policy": ("drafts accepted", "the same tokens as plain decoding: True"),
    "rounds": ("drafted accepted rows", "decode_tok_s: ", "price of exactness: "),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)  # one that talks


def run(name: str, model: Path, cache: Path) -> str:
    environment = {**os.environ, "PILOTFISH_CACHE": str(cache), "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), str(model)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example_runs(name: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    said = run(name, tiny, tmp_path_factory.getbasetemp() / "examples-cache")
    for words in SAID[name]:  # a new example needs an entry
        assert words in said, said


def test_a_seed_repeats_its_answer(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What examples/generate.py tells its reader."""
    cache = tmp_path_factory.getbasetemp() / "examples-cache"
    first, second = (run("generate", tiny, cache).split("tokens/s]")[1] for _ in range(2))
    assert first.strip() and first == second
