"""Steps that see a chosen part of a whole cache: what is seen is what was chosen, and drafts change nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_runs import SAMPLINGS, WIDTHS, Knows, Run, TurningToy, engines_over_tiny_weights, prompt_for, run
from tiers import quick

import pilotfish
from pilotfish.backends import get
from pilotfish.runtime.cache.policies import TokenSelect, policy_by_name
from pilotfish.runtime.cache.policies.view import CacheView
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.errors import AbilityError, OptionError
from pilotfish.runtime.interfaces import Weights
from pilotfish.runtime.speculation.draft_weights import DraftWeights
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ALL, SEEN

POLICY = TokenSelect(budget=160, every=10, sinks=4, window=24, watched=3, layers=2)
ENGINES = ("toy", "reference", "onnx", "openvino")
N_PROMPT, N_NEW = 230, 90


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Weights]]:
    toy = functools.partial(TurningToy, vocab_size=17, context_length=512, abilities=ALL | SEEN)
    yield from engines_over_tiny_weights(tmp_path_factory, Sizes(layers=2, context=512), toy)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("form", ["chain", "tree"])
@pytest.mark.parametrize("engine", quick(ENGINES, "toy", "onnx", "openvino"))
def test_drafts_change_nothing(engine: str, form: str, sampling: str, opened: Callable[[str], Weights]) -> None:
    weights, distribution = opened(engine), SAMPLINGS[sampling]
    if engine == "openvino" and form == "tree":
        pytest.skip("its trees are not the bits of its chains, with and without a choice")
    prompt = prompt_for(weights, N_PROMPT)

    def answer(*proposers: Any) -> Run:
        return run(weights, POLICY, prompt, proposers=proposers, sampling=distribution, n_new=N_NEW)

    plain = answer()
    drafted = answer(Knows(plain.tokens, form == "tree", weights.info.vocab_size))
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert len(drafted.rounds) < 0.7 * len(plain.rounds)
    assert plain.most == len(plain.tokens) - 1, "an entry was evicted"
    for done in (plain, drafted):
        assert done.sequence.n_seen <= POLICY.budget + POLICY.every < done.sequence.n_entries
    full = run(weights, None, prompt, sampling=distribution, n_new=N_NEW)
    assert full.tokens.tolist() != plain.tokens.tolist(), "the policy changed nothing: this proves nothing"


@pytest.mark.parametrize("engine", quick(ENGINES, "toy", "reference", "onnx", "openvino"))
def test_a_step_sees_what_a_cache_of_these_entries_alone_would_show(
    engine: str, opened: Callable[[str], Weights]
) -> None:
    weights = opened(engine)
    tokens = prompt_for(weights, 300)
    one = weights.session()
    one.forward(tokens[:200], n_logits=0)
    whole = one.forward(tokens[200:204], n_logits=4).logits.copy()
    one.truncate(200)
    entries = np.r_[0:32, 64:96, 128:200]
    other = one.fork(entries)
    one.attend(entries)
    for n in (200, 230, 260):  # with what both append since, over the ends of blocks
        ours, theirs = (s.forward(tokens[n : n + 30], n_logits=30).logits.copy() for s in (one, other))
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()
    assert len(one.positions) == 290
    one.truncate(250)
    other.truncate(250)
    ours, theirs = (s.forward(tokens[250:253], n_logits=3).logits.copy() for s in (one, other))
    assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()
    one.truncate(200)
    one.attend(None)
    assert np.array_equal(one.forward(tokens[200:204], n_logits=4).logits, whole)
    one.truncate(204)
    one.attend(np.r_[0:32, 96:204])
    one.truncate(200)  # an entry that was there is forgotten: everything is seen
    assert np.array_equal(one.forward(tokens[200:204], n_logits=4).logits, whole)
    for bad in (np.arange(100), np.r_[5:3:-1], np.arange(0)):
        with pytest.raises(OptionError):
            one.attend(bad)
    if engine == "openvino":
        with pytest.raises(OptionError, match="whole blocks of 32"):
            one.attend(np.r_[0:32, 65:204])
    for session in (one, other):
        session.close()


def test_blocks_with_the_most_votes_are_chosen(opened: Callable[[str], Weights]) -> None:
    weights = opened("reference")
    session = weights.session()
    tokens = prompt_for(weights, 330)
    step = session.forward(tokens, n_logits=0, observe=frozenset({"queries", "attention"}))
    assert step.queries is not None and step.attention is not None
    view = CacheView(session, tokens[-3:], tokens, queries=step.queries[:, :, -3:])
    chosen = POLICY.select(view)
    votes = step.attention[:, :, -3:].sum(axis=(0, 1, 2))
    sums = votes[32:288].reshape(-1, 32).sum(axis=1)
    best = sorted(np.argsort(-sums)[: (160 - 32 - 42) // 32])
    expected = np.concatenate(
        [np.arange(32), *(np.arange(32 * b + 32, 32 * b + 64) for b in best), np.arange(288, 330)]
    )
    assert chosen.tolist() == expected.tolist() and len(chosen) <= POLICY.budget
    session.close()


def test_a_prompt_is_read_with_everything_in_sight(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    tokens = prompt_for(weights, 400)
    ours, theirs = CachedSequence(weights.session(), WIDTHS, POLICY), CachedSequence(weights.session(), WIDTHS)
    ours.cover(tokens[:300])
    ours.compress()
    assert ours.n_seen <= 160 and ours.until_compression == 10
    for sequence in (ours, theirs):
        sequence.cover(tokens)
    assert ours.n_seen == 400
    a, b = (s.forward(tokens[:2], n_logits=2).logits for s in (ours, theirs))
    assert np.array_equal(a, b)
    short = CachedSequence(weights.session(), WIDTHS, POLICY)
    short.cover(tokens[:100])
    assert short.until_compression == 70


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", sizes=Sizes(layers=1, context=512), seed=10)
    assert policy_by_name("select:budget=512,every=8") == TokenSelect(budget=512, every=8)
    for bad in ("select:budget=200", "select:every=4", "select:block=0"):
        with pytest.raises(OptionError):
            policy_by_name(bad)
    with pytest.raises(OptionError, match="evicts"):
        DraftWeights(TurningToy(context_length=512), 0.1, cache=TokenSelect()).session(100)
    if get("llamacpp").version() is not None:
        with pytest.raises(AbilityError, match=r"select cache policy needs attend.*onnx engine"):
            pilotfish.load(path, "llamacpp", cache="select")
    with pytest.raises(OptionError, match="keeps the whole cache, so there is none to drop"):
        pilotfish.load(path, "reference", cache="select:budget=256", quality=0.9)
    with pilotfish.load(path, "reference", cache="select:budget=256") as model:
        assert model.max_context == 512
        result = model.generate("the cat and the dog " * 20, max_new_tokens=20)
        assert result.stats.kv_entries == result.stats.n_prompt + result.stats.n_tokens - 1
