"""A draft model whose own cache is compressed: the same answer, a bounded cache, and drafts that go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pilotfish import Model, Sampling, load
from pilotfish.runtime.cache.compression import entries_for
from pilotfish.runtime.cache.policies import SinksAndWindow, policy_by_name
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.errors import AbilityError, OptionError
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.draft_weights import DraftWeights
from pilotfish.runtime.speculation.proposers import DraftModel
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ToyWeights

SMALL = "sinks:budget=32,every=16,window=8"


class Always:
    """Three tokens at a time."""

    max_tokens = 3

    def more(self, n_drafted: int, confidence: float) -> bool:
        return True


PROMPT = "the cat and the dog and the hello " * 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("models")
        tiny_gguf(folder / "short.gguf", quant="Q8_0", sizes=Sizes(layers=1, context=192), seed=10)
        yield tiny_gguf(folder / "tiny.gguf", quant="Q8_0", sizes=Sizes(layers=1), seed=10)


def paired(path: Path, draft: Path, cache: str | None) -> Model:
    return load(path, "reference", draft=draft, speculate=Fixed(4), draft_cache=cache, proposers=())


@pytest.mark.parametrize("cache", [SMALL, "keydiff:budget=32,every=16,window=8", "sirllm:budget=32,every=16,window=8"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8)])
def test_the_answer_is_the_same_and_the_cache_smaller(path: Path, cache: str, sampling: Sampling) -> None:
    with paired(path, path, cache) as small, paired(path, path, None) as whole:
        ours, theirs = (m.generate(PROMPT, max_new_tokens=80, sampling=sampling, seed=3) for m in (small, whole))
        if sampling.greedy:
            assert ours.token_ids == theirs.token_ids
        assert ours.stats.drafted > 15 and ours.stats.accepted > 0
        assert ours.stats.kv_bytes < theirs.stats.kv_bytes
        again = small.generate(PROMPT + "so", max_new_tokens=40, sampling=sampling, seed=3)
        assert again.stats.drafted > 10


def test_drafts_go_on_where_the_draft_model_ends(path: Path) -> None:
    """Its positions end at 192; with sinks it drafts on."""
    drafted = {}
    for cache in (SMALL, None):
        with paired(path, path.with_name("short.gguf"), cache) as model:
            result = model.generate(PROMPT, max_new_tokens=200)
            drafted[cache] = sum(r.drafted for r in result.rounds[-20:])
    assert drafted[SMALL] > 20 and drafted[None] == 0


def test_a_compressed_cache_drafts_what_its_model_says_of_what_is_left() -> None:
    weights, policy = ToyWeights(vocab_size=11, context_length=256), SinksAndWindow(budget=12, every=4, window=4)
    sequence = CachedSequence(weights.session(entries_for(policy, ANY_WIDTH, weights.info)), policy=policy)
    proposer = DraftModel(sequence, Sampling(), 5, np.random.default_rng(0), 11)
    context = np.random.default_rng(1).integers(0, 11, 5)
    for _ in range(150):
        draft = proposer.propose(context, Always())
        other = CachedSequence(weights.session(entries_for(policy, ANY_WIDTH, weights.info)), policy=policy)
        other.cover(context[:-1])
        tokens = [int(context[-1])]
        for token in draft.tokens:
            logits = other.forward(np.array(tokens[-1:]), n_logits=1).logits[0]
            assert int(logits.argmax()) == token
            tokens.append(int(token))
        assert len(sequence.session.positions) <= policy.budget + policy.every + 4
        n = len(context) % 4  # so many are accepted, and then comes something else
        context = np.concatenate([context, draft.tokens[:n], [(int(context[-1]) + 1) % 11]])


def test_what_cannot_be_is_refused(path: Path) -> None:
    with pytest.raises(OptionError, match="draft_cache is 'sinks', but there is no draft model"):
        load(path, "reference", draft_cache="sinks")
    with pytest.raises(OptionError, match="no cache policy 'sink'"):
        load(path, "reference", draft=path, draft_cache="sink")
    weights = DraftWeights(ToyWeights(), 0.1, cache=policy_by_name("snapkv:budget=8,every=4,window=2"))
    with pytest.raises(AbilityError, match="snapkv cache policy needs"):
        weights.session(50)
