"""Contexts that go on where the model's positions end, with sinks and a window: exact, and what is held is known."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from cache_runs import SAMPLINGS, WIDTHS, Knows, engines_over_tiny_weights, prompt_for, run
from real_weights import smollm2
from tiers import quick

import pilotfish
from pilotfish.runtime.cache.compressed_copy import CompressedCopy
from pilotfish.runtime.cache.compression import entries_for
from pilotfish.runtime.cache.policies import SinksAndWindow
from pilotfish.runtime.cache.sequence import CachedSequence, Cancelled
from pilotfish.runtime.decoding.scoring import surprisal
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.interfaces import Tokens, Weights
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.proposers import SelfDraft
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ALL, ToyWeights

CONTEXT = 128
POLICY = SinksAndWindow(budget=24, every=8, sinks=2, window=6)
ENGINES = ("toy", "reference", "onnx", "openvino", "llamacpp")
LONG = 4 * CONTEXT


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Weights]]:
    """Weights with a small context on an engine."""
    sizes = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, layers=1, context=CONTEXT)
    toy = functools.partial(ToyWeights, vocab_size=17, context_length=CONTEXT, abilities=ALL)
    yield from engines_over_tiny_weights(tmp_path_factory, sizes, toy)


def endless(weights: Weights) -> CachedSequence:
    return CachedSequence(weights.session(entries_for(POLICY, WIDTHS, weights.info)), WIDTHS, POLICY)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("engine", quick(ENGINES, "toy", "onnx"))
def test_drafts_change_nothing_four_contexts_on(engine: str, sampling: str, opened: Callable[[str], Weights]) -> None:
    weights, distribution = opened(engine), SAMPLINGS[sampling]
    prompt = prompt_for(weights)
    plain = run(weights, POLICY, prompt, sampling=distribution, n_new=LONG)
    drafted = run(
        weights,
        POLICY,
        prompt,
        proposers=(Knows(plain.tokens, False, weights.info.vocab_size),),
        sampling=distribution,
        n_new=LONG,
    )
    assert len(plain.tokens) == len(prompt) + LONG
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert len(drafted.rounds) < 0.6 * len(plain.rounds)
    for done in (plain, drafted):
        assert done.most <= POLICY.budget + POLICY.every
        assert done.sequence.shift > 3 * (CONTEXT - 70) and done.sequence.session.positions.max() < CONTEXT
    assert np.array_equal(plain.sequence.session.positions, drafted.sequence.session.positions)


@pytest.mark.parametrize("engine", quick(ENGINES, "toy", "reference"))
def test_what_is_held_is_the_kept_tokens_read_anew(engine: str, opened: Callable[[str], Weights]) -> None:
    weights = opened(engine)
    tokens = prompt_for(weights, 400)
    ours, renewed = endless(weights), []
    for n in range(33, len(tokens), 5):
        before = ours.shift
        ours.cover(tokens[:n])
        if ours.shift != before:
            renewed.append(n)
            at = ours.mode.fixed
            kept = np.r_[tokens[:2], tokens[at - 22 : at]]
            other = CachedSequence(weights.session(CONTEXT), WIDTHS)
            other.cover(np.r_[kept, tokens[at:n]])
            assert np.array_equal(ours.session.positions, other.session.positions)
            step, wanted = (x.session.forward(tokens[n : n + 2], n_logits=2).logits.copy() for x in (ours, other))
            ours.session.truncate(n - ours.shift)
            other.session.close()
            assert np.allclose(step, wanted, atol=0.02 * np.abs(wanted).max())
    assert len(renewed) >= 4


def test_how_a_text_arrives_does_not_matter() -> None:
    weights = ToyWeights(vocab_size=17, context_length=CONTEXT)
    tokens = prompt_for(weights, 500)
    whole, parts = endless(weights), endless(weights)
    whole.cover(tokens)
    rng = np.random.default_rng(2)
    n = 0
    while n < len(tokens):
        n = min(n + int(rng.integers(1, 40)), len(tokens))
        parts.cover(tokens[:n])
        parts.truncate(max(n - 3, parts.mode.fixed))
    parts.cover(tokens)
    assert whole.session.entries == parts.session.entries and whole.shift == parts.shift  # type: ignore[attr-defined]
    assert whole.longest > 1 << 30
    losses, _ = surprisal(endless(weights), tokens, 0)
    assert len(losses) == 499


def test_going_back_before_the_last_compression_reads_anew() -> None:
    weights = ToyWeights(vocab_size=17, context_length=CONTEXT)
    tokens = prompt_for(weights, 300)
    sequence, fresh = endless(weights), endless(weights)
    sequence.cover(tokens)
    assert sequence.shift > 0
    assert sequence.cover(tokens[:200]) == 0
    fresh.cover(tokens[:200])
    assert sequence.session.entries == fresh.session.entries  # type: ignore[attr-defined]


def test_stopped_while_reading_anew_nothing_is_covered() -> None:
    weights = ToyWeights(vocab_size=17, context_length=CONTEXT)
    tokens = prompt_for(weights, 300)
    for after in range(1, 60):
        sequence, asked = endless(weights), iter(range(after))
        try:
            sequence.cover(tokens, cancelled=lambda asked=asked: next(asked, None) is None)
        except Cancelled:
            held = len(sequence.session.positions)
            assert sequence.n_entries == held
        fresh = endless(weights)
        fresh.cover(tokens)
        sequence.cover(tokens)
        assert sequence.session.entries == fresh.session.entries  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", quick(("toy", "reference", "onnx", "openvino"), "toy"))
def test_drafting_for_itself_goes_on_too(
    engine: str, opened: Callable[[str], Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)  # asking costs nothing, so that nobody backs off
    weights = opened(engine)
    prompt = prompt_for(weights)
    plain = run(weights, POLICY, prompt, n_new=LONG)
    sequence = endless(weights)
    copy = CompressedCopy(sequence, SinksAndWindow(budget=10, every=5, sinks=2, window=4))
    proposer = SelfDraft(copy, Sampling(), len(prompt), np.random.default_rng(5), weights.info.vocab_size)
    ours = run(weights, POLICY, prompt, proposers=(proposer,), sequence=sequence, n_new=LONG)
    assert ours.tokens.tolist() == plain.tokens.tolist()
    assert sum(r.drafted for r in ours.rounds[-50:]) > 20, "nothing was drafted after the positions had ended"


@pytest.mark.parametrize("engine", quick(("toy", "reference", "onnx", "openvino"), "toy", "reference"))
def test_a_saved_cache_goes_on(engine: str, opened: Callable[[str], Weights]) -> None:
    weights = opened(engine)
    tokens = prompt_for(weights, 500)
    one, other = endless(weights), endless(weights)
    one.cover(tokens[:301])
    assert one.shift > 0
    other.restore(one.save())
    assert other.shift == one.shift and np.array_equal(other.tokens, one.tokens)
    for sequence in (one, other):
        assert sequence.cover(tokens) == 301
    ours, theirs = (x.forward(tokens[:2], n_logits=2).logits.copy() for x in (one, other))
    assert np.array_equal(ours, theirs)


def test_a_model_talks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", quant="Q8_0", sizes=Sizes(layers=1, context=256), seed=10)
    with pilotfish.load(path, "reference", cache="sinks:budget=64,every=32") as model:
        with pytest.raises(OptionError, match="never full; give a number"):
            model.generate("the cat", max_new_tokens=None)
        chat = model.chat()
        for _ in range(4):
            answer = chat.send("the cat and the dog and the hello " * 4, max_new_tokens=40)
        assert answer.stats.n_prompt > 2 * 256 and answer.stats.kv_entries <= 96


def test_a_budget_as_large_as_the_context_ends_with_it() -> None:
    weights = ToyWeights(vocab_size=17, context_length=CONTEXT)
    policy = SinksAndWindow(budget=90, every=16, sinks=2, window=6)
    sequence = CachedSequence(weights.session(), WIDTHS, policy)
    assert sequence.longest == CONTEXT - 33


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model_stays_fluent() -> None:
    """Perplexity of the last part of a text of two contexts is what a window alone gives anywhere else in it."""
    text = "\n".join(topics.values())[:80_000]
    with pilotfish.load(smollm2(), "onnx", draft=None, cache="sinks:budget=512,every=128") as model:
        tokens: Tokens = model.encode(text, raw=True)[:17_000]
        policy: Any = model.cache
        rows = model.calibration.rows.rule()
        sequence = CachedSequence(model.target.session(entries_for(policy, rows, model.info)), rows, policy)
        early, _ = surprisal(sequence, tokens[:4000], 2000)
        late, _ = surprisal(sequence, tokens, len(tokens) - 2000)
        sequence.session.close()
        assert late.mean() < early.mean() + 0.7
