"""Who can do what an engine cannot: said by load() and by an answer, and true of the engines that are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pilotfish
from pilotfish import backends
from pilotfish.loading.way_out import _OFFERS, with_way_out
from pilotfish.runtime.errors import AbilityError
from pilotfish.runtime.interfaces import EncoderInfo, ModelInfo
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.testing.toy import ToyWeights


def missing(engine: str, *abilities: str) -> AbilityError:
    return AbilityError("It cannot.", engine=engine, missing=frozenset(abilities))


def info(engine: str, *, encoder: bool = False, device: str = "cpu") -> ModelInfo:
    known = ToyWeights(3, encoder=EncoderInfo((0,)) if encoder else None).info
    return replace(known, engine=engine, device=device)


@pytest.mark.parametrize(
    ("error", "encoder", "says"),
    [
        (missing("toy", "evict_heads"), False, "It cannot. The onnx engine and the reference engine can."),
        (missing("toy", "fork"), True, "It cannot. The onnx engine and the openvino engine .* f16 or f32 can."),
        (missing("onnx", "evict_heads"), True, "It cannot."),
        (missing("openvino", "keys"), True, r"It cannot. .*the openvino engine with a cache in f16 or f32 can."),
        (missing("llamacpp", "attention"), False, r"It cannot. .*--option flash_attention=off.* can."),
        (missing("llamacpp", "keys"), False, r"It cannot. The onnx engine, .* and the reference engine can."),
        (AbilityError("It says all there is."), False, "It says all there is."),
    ],
)  # fmt: skip
def test_those_are_named_that_have_all_that_is_missing(error: AbilityError, encoder: bool, says: str) -> None:
    told = with_way_out(error, info(error.engine, encoder=encoder))
    with pytest.raises(AbilityError, match=f"^{says}$"):
        raise told
    assert (told.engine, told.missing) == (error.engine, error.missing)


def test_graphs_of_fixed_shapes_have_their_own_engine_on_another_device_as_a_way_out() -> None:
    told = with_way_out(missing("onnx", "evict_heads"), info("onnx", device="static"))
    assert str(told) == "It cannot. The onnx engine on the device cpu and the reference engine can."


@pytest.mark.parametrize("offer", [x for x in _OFFERS if x.has], ids=lambda x: x.engine)
def test_engines_have_what_they_are_named_for(offer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, has = offer.engine, offer.has - {"encode"}  # type: ignore[attr-defined]
    if backends.get(name).version() is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", seed=3)
    kv_dtype = "f16" if name == "openvino" else None
    with pilotfish.load(path, name, threads=1, kv_dtype=kv_dtype, speculate=False) as model:
        session = model.target.session(64)
        shows = session.abilities | ({"attention"} if {"queries", "keys"} <= session.abilities else frozenset())
        session.close()
        assert has <= shows


def test_an_answer_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", seed=3)
    with pilotfish.load(path, "reference", threads=1, speculate=False) as model:
        session = model._sequence.session
        monkeypatch.setattr(session, "abilities", session.abilities - {"fork"})
        with pytest.raises(AbilityError, match=r"reference engine cannot here.*The onnx engine"):
            model.generate("the cat", raw=True, beams=2, max_new_tokens=4)
