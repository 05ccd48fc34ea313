"""SmolLM2 on every engine: drafts change no token, and engines agree up to their own rounding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_weights import PROMPTS, smollm2

import pilotfish
from pilotfish import backends
from pilotfish.runtime.speculation.draft_length import Fixed

pytestmark = pytest.mark.real

N_TOKENS = 96
NAMES = ("copy 1", "copy 3", "code 1", "code 3", "chat 2", "list 5")


@pytest.fixture(scope="module", params=["openvino", "llamacpp"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if backends.get(name).version() is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(scope="module")
def plain(engine: str) -> Iterator[pilotfish.Model]:
    with pilotfish.load(smollm2(), engine, speculate=False, max_context=1024, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def expected(plain: pilotfish.Model) -> dict[str, tuple[int, ...]]:
    return {name: plain.generate(PROMPTS[name], max_new_tokens=N_TOKENS).token_ids for name in NAMES}


@pytest.mark.parametrize("speculate", [True, Fixed(7)], ids=["by cost", "7"])
def test_drafts_change_no_token(engine: str, speculate: bool | Fixed, expected: dict[str, tuple[int, ...]]) -> None:
    accepted = 0
    with pilotfish.load(smollm2(), engine, speculate=speculate, max_context=1024, threads=2) as model:
        for name in NAMES:
            result = model.generate(PROMPTS[name], max_new_tokens=N_TOKENS)
            assert result.token_ids == expected[name], name
            accepted += result.stats.accepted
    if isinstance(speculate, Fixed):  # on a busy machine drafts may well not pay
        assert accepted > 50


def test_the_known_answer_is_given(engine: str, plain: pilotfish.Model) -> None:
    """load() has asked the canary already; a prompt processed anew in the same cache gives the same answer again."""
    first = plain.generate(PROMPTS["chat 2"], max_new_tokens=24).token_ids
    plain.generate(PROMPTS["list 1"], max_new_tokens=24)
    assert plain.generate(PROMPTS["chat 2"], max_new_tokens=24).token_ids == first
    assert plain.info.engine == engine
