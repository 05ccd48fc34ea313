"""T5 on llama.cpp: the engine contract, transformers' answers, and the whole product over tiny models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiers import quick

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_seq2seq import save_pair  # noqa: E402

from pilotfish.backends import get  # noqa: E402
from pilotfish.exporters.gguf_quantize import quantize_gguf  # noqa: E402
from pilotfish.exporters.gguf_writer import write_gguf  # noqa: E402
from pilotfish.exporters.sources import open_source  # noqa: E402
from pilotfish.runtime.interfaces import Weights  # noqa: E402
from pilotfish.testing import CHECKS, Subject  # noqa: E402

BACKEND = get("llamacpp")
pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

# What llama.cpp takes for granted of distances, and no more layers in the decoder than in the encoder.
FITTING: dict[str, Any] = {
    "relative_attention_max_distance": 128,
    "d_model": 64,
    "num_decoder_layers": 2,
    "n_positions": 512,
}
NOISE = {"f32": 2e-5, "Q8_0": 0.1}  # between widths, relative to the largest logit
CLASSES: dict[str, tuple[tuple[int, ...], ...]] = {"f32": (), "Q8_0": ()}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Gives a model as a GGUF file whose weights are stored in a given way."""
    folder = tmp_path_factory.mktemp("gguf")

    @functools.cache
    def write(name: str, stored: str) -> Path:
        path = folder / f"{name}-{stored}.gguf"
        if stored == "f32":
            source = open_source(save_pair(name, folder / name, **FITTING))
            write_gguf(source, source.torch_model(), path, stored="f32")
        else:
            quantize_gguf(write(name, "f32"), path, stored, threads=2)
        return path

    return write


def opened(path: Path, kv_dtype: str | None = None, threads: int = 2, **options: object) -> Weights:
    return BACKEND.open(path, device=None, threads=threads, kv_dtype=kv_dtype, options=options)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", quick([f"{n} {s}" for n in ("t5", "flan") for s in NOISE], "t5 f32", "flan Q8_0"))
def test_contract(kind: str, check: Callable[[Subject], None], written: Written) -> None:
    name, stored = kind.split()
    check(Subject(partial(opened, written(name, stored)), NOISE[stored], CLASSES[stored]))
