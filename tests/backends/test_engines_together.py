"""One request on every engine, and drafts from one engine for a target on another."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from pilotfish import Sampling, backends, load
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers.draft_model import DraftModel
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

ENGINES = backends.names()
SIZES = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256)
PROMPT = "the cat and the dog and the cat and the"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "target": tiny_gguf(folder / "target.gguf", quant="Q8_0", sizes=SIZES, seed=10),
        "draft": tiny_gguf(folder / "draft.gguf", quant="Q8_0", sizes=SIZES, seed=11),
    }


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def need(*engines: str) -> None:
    for engine in engines:
        if engine not in backends.names() or backends.get(engine).version() is None:
            pytest.skip(f"{engine} is not installed")


@pytest.mark.parametrize("engine", ENGINES)
def test_drafts_change_nothing(engine: str, models: dict[str, Path]) -> None:
    need(engine)
    drawn = Sampling(temperature=0.9, top_k=30)
    with load(models["target"], engine) as model, load(models["target"], engine, speculate=False) as plain:
        assert model.info.engine == engine
        ours, theirs = (m.generate(PROMPT, max_new_tokens=48) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids and len(ours.token_ids) > 5
        for seed in range(3):  # a distribution is checked by enumeration elsewhere; here: sampling runs
            assert len(model.generate(PROMPT, max_new_tokens=8, sampling=drawn, seed=seed).token_ids) > 0


@pytest.mark.parametrize(("engine", "draft_engine"), [("onnx", "openvino"), ("openvino", "onnx"), ("llamacpp", "onnx")])
def test_target_and_draft_on_two_engines(engine: str, draft_engine: str, models: dict[str, Path]) -> None:
    need(engine, draft_engine)
    with (
        load(models["target"], engine, speculate=False) as plain,
        load(
            models["target"], engine, draft=models["draft"], speculate=Fixed(3), draft_engine=draft_engine, proposers=()
        ) as model,
        load(
            models["target"],
            engine,
            draft=models["target"],
            speculate=Fixed(3),
            draft_engine=draft_engine,
            proposers=(),
        ) as itself,
    ):
        expected = plain.generate(PROMPT, max_new_tokens=48).token_ids
        for paired in (model, itself):
            result = paired.generate(PROMPT, max_new_tokens=48)
            assert result.token_ids == expected
            assert {r.proposer for r in result.rounds if r.drafted} == {DraftModel.name}
        assert result.stats.accepted > result.stats.drafted / 2  # a model mostly agrees with itself on another engine


def test_an_engine_of_another_package_generates(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As installed: a module and the entry point in its metadata, nothing registered by hand."""
    (tmp_path / "my_engine.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import replace
            from pilotfish import backends

            class Mine:
                name, install = "mine", "pip install mine"
                def version(self): return "0.1"
                def problem(self): return None
                def devices(self): return ("cpu",)
                def notes(self): return {}
                def formats(self, device=None): return ("gguf",)
                def open(self, model, *, device, threads, kv_dtype, options={}):
                    weights = backends.get("reference").open(model, device=None, threads=1, kv_dtype=None)
                    weights.model.info = replace(weights.info, engine="mine")
                    return weights

            BACKEND = Mine()
            """
        )
    )
    info = tmp_path / "my_engine-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-engine\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[pilotfish.backends]\nmine = my_engine:BACKEND\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert backends.names()[-1] == "mine"
    with load(models["target"], "mine") as model:
        assert model.info.engine == "mine"
        assert len(model.generate(PROMPT, max_new_tokens=8).token_ids) == 8
    sys.modules.pop("my_engine", None)
