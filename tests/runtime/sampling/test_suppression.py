"""Tokens that are never said: part of the distribution, whoever drafts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from enumerate_randomness import LazyRng, distribution_of
from enumerated_loop import (  # noqa: F401 - a fixture among them
    BEGIN,
    POLICIES,
    SETTINGS,
    SOURCE,
    V,
    answer_distribution,
    run_answer,
    still_clock,
    total_variation,
)

from pilotfish import Sampling
from pilotfish.loading.opening import rules_of
from pilotfish.runtime.decoding.loop import Limits
from pilotfish.runtime.errors import ModelFileError
from pilotfish.runtime.files.bundle import Bundle
from pilotfish.runtime.files.generation_settings import checked_settings
from pilotfish.runtime.files.gguf_model import GgufModel
from pilotfish.runtime.files.manifest import Manifest, Source
from pilotfish.runtime.interfaces import EncoderInfo
from pilotfish.runtime.model.rules import Frame, Rules
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import NGram, SourceCopy, Suffix, default_proposers
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.testing.toy import ToyWeights
from pilotfish.testing.toy_model import toy_model, toy_weights

WANTED = 3
RULE = Rules(suppress_tokens=(2,), begin_suppress_tokens=(1,))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_distribution_is_the_source_s_without_these_tokens(settings: str, policy: str) -> None:
    sampling = SETTINGS[settings]
    sequences = itertools.product(range(V), repeat=WANTED)
    expected = answer_distribution(sampling, sequences, lambda place: [2] if place else [1, 2])
    ruled, copies = RULE.applied(sampling, Frame(len(BEGIN))), (SourceCopy().reading(SOURCE, len(BEGIN)),)

    def run(rng: LazyRng) -> tuple[int, ...]:  # the copies draft what is forbidden
        return run_answer(rng, ruled, copies, policy, ANY_WIDTH, Limits(max_new_tokens=WANTED))

    found = distribution_of(run)
    assert total_variation(found, expected) <= 1e-12
    assert all(2 not in sequence and sequence[0] != 1 for sequence, chance in found.items() if chance > 0)


TEXT = "the dog trots to the other dog"


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0, "seed": 3}, {"beams": 3, "max_new_tokens": 12}])
def test_a_model_does_not_say_them(asked: dict[str, float]) -> None:
    """One that copies its source, but for a letter, and but for the first one."""
    rule = Rules((ord("o"),), (ord("t"),))
    texts = {}
    for plain in (True, False):
        with toy_model(toy_weights(), Fixed(4), plain=plain, rules=rule) as model:
            result = model.generate(TEXT, **{"max_new_tokens": 31, **asked})  # type: ignore[arg-type]
            texts[plain] = result.token_ids
            assert ord("o") not in result.token_ids and result.token_ids[0] != ord("t")
            assert ord("t") in result.token_ids[1:]
            with model.sibling(policy=None) as beside:
                assert beside.generate(TEXT, **{"max_new_tokens": 31, **asked}).token_ids == result.token_ids  # type: ignore[arg-type]
    assert texts[True] == texts[False]
    with toy_model(toy_weights()) as model:
        assert model.generate(TEXT).text == TEXT


def test_nothing_to_suppress_changes_nothing() -> None:
    sampling = Sampling(temperature=1.0)
    assert Rules().applied(sampling, Frame(3)) is sampling and Rules().processors(Frame(3)) == ()


def test_a_caller_s_processor_has_the_last_word() -> None:
    def insist(logits: np.ndarray, context: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) == 2, np.float32(0), np.float32(-np.inf))

    distribution = RULE.applied(Sampling(processors=(insist,)), Frame(2)).distribution(
        np.zeros(V, np.float32), BEGIN, 2
    )
    assert distribution.prob(2) == 1


def test_what_settings_for_generating_say() -> None:
    said = {"suppress_tokens": [7, -1, 3, 7, 50], "bad_words_ids": [[49], [1, 2]], "begin_suppress_tokens": [0]}
    facts = checked_settings(said, 50)
    assert facts.suppress_tokens == (3, 7, 49) and facts.begin_suppress_tokens == (0,)
    assert checked_settings({}, 50).suppress_tokens == ()
    with pytest.raises(ModelFileError, match="suppress_tokens is 3"):
        checked_settings({"suppress_tokens": 3}, 50)


def test_a_manifest_may_leave_them_out() -> None:
    facts = {
        "model_id": "x",
        "architecture": "t5",
        "context_length": 9,
        "source": {"name": "x", "sha256": "0" * 64, "format": "huggingface"},
        "files": {},
        "formats": {},
    }
    assert Manifest.model_validate(facts).suppress_tokens == ()
    assert Manifest.model_validate({**facts, "suppress_tokens": [3]}).suppress_tokens == (3,)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Manifest.model_validate({**facts, "begin_suppress_tokens": [-1]})


def test_ids_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    manifest = Manifest(
        model_id="x",
        architecture="t5",
        context_length=9,
        source=Source(name="x", sha256="0" * 64, format="huggingface"),
        files={},
        formats={},
        suppress_tokens=(4,),
        begin_suppress_tokens=(7,),
    )
    model = Bundle(tmp_path, manifest)
    assert rules_of(model, 8) == Rules((4,), (7,))
    with pytest.raises(ModelFileError, match="name the token 7, and the model has 7"):
        rules_of(model, 7)
    assert rules_of(GgufModel(tiny_gguf(tmp_path / "model.gguf")), 7) == Rules()


def test_who_drafts_for_a_model_that_listens() -> None:
    """Nothing of a sound can be copied, but speech repeats itself."""
    listening = EncoderInfo((1,), 3000, "audio", 80)
    lookups = [Suffix, NGram]
    for encoder, kinds in ((None, lookups), (EncoderInfo((2, 0)), [SourceCopy]), (listening, lookups)):
        info = ToyWeights(V, encoder=encoder).info  # type: ignore[arg-type]
        assert [type(proposer) for proposer in default_proposers(info)] == kinds
