"""A model that drafts for itself over a compressed copy of its cache: quicker or not, never another answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_runs import LATER, N_PROMPT, PROSE, SAMPLINGS, SMALL, WIDTHS, WRAPPED, opened, prompt_for, run, small
from enumerate_randomness import distribution_of
from real_weights import smollm2
from small_models import need, tiny_file

from pilotfish.runtime.cache.compressed_copy import CompressedCopy
from pilotfish.runtime.cache.compression import entries_for
from pilotfish.runtime.cache.policies import H2O, KeyDiff, KVzip, SinksAndWindow, SirLLM, SnapKV
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits, generate
from pilotfish.runtime.errors import AbilityError, OptionError
from pilotfish.runtime.interfaces import Indices, Round, Tokens, Weights
from pilotfish.runtime.model.result import judged
from pilotfish.runtime.profiling.cost_curve import CostCurve
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import SelfDraft
from pilotfish.testing.tiny_models import tiny_gguf
from pilotfish.testing.toy import ALL, SEEN, ToyWeights

__all__ = ["opened"]  # the fixture


def drafting(weights: Weights, policy: Any, sequence: CachedSequence, distribution: Sampling) -> SelfDraft:
    copy = CompressedCopy(sequence, policy)
    return SelfDraft(copy, distribution, N_PROMPT, np.random.default_rng(5), weights.info.vocab_size)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", [*LATER, *WRAPPED])
@pytest.mark.parametrize("engine", ["toy", "reference", "onnx"])
def test_drafting_for_itself_changes_nothing(
    engine: str, name: str, sampling: str, opened: Callable[[str], Weights]
) -> None:
    weights, distribution = opened(engine), SAMPLINGS[sampling]
    prompt = prompt_for(weights)
    plain = run(weights, None, prompt, sampling=distribution)
    sequence = CachedSequence(weights.session(None), WIDTHS)
    proposer = drafting(weights, small(name, engine), sequence, distribution)
    ours = run(weights, None, prompt, proposers=(proposer,), sampling=distribution, sequence=sequence)
    if sampling == "greedy":
        assert ours.tokens.tolist() == plain.tokens.tolist()
    else:  # drafts draw random numbers of their own, so only the distribution is the same; see the test of that below
        assert len(ours.tokens) == len(plain.tokens)
    assert sum(r.drafted for r in ours.rounds) > 20
    assert {r.proposer for r in ours.rounds} <= {"self", None}
    assert len(sequence.session.positions) == len(ours.tokens) - 1, "the full cache lost an entry"


def test_the_distribution_is_that_of_plain_decoding() -> None:
    """Exactly: every outcome of every random number, with its probability."""
    weights: Any = ToyWeights(vocab_size=3, context_length=64, scale=1.0)
    prompt = np.random.default_rng(2).integers(0, 3, 15)
    policy, distribution = SinksAndWindow(budget=6, every=4, sinks=1, window=3), Sampling(temperature=1.0)

    def answer(rng: Any, drafts: bool) -> tuple[int, ...]:
        sequence = CachedSequence(weights.session(None), WIDTHS)
        copy = CompressedCopy(sequence, policy)
        rounds = generate(
            sequence,
            prompt,
            sampling=distribution,
            drafting=Drafting(Fixed(3), CostCurve(np.array([1, 33]), np.array([1.0, 1.0])), WIDTHS),
            proposers=(SelfDraft(copy, distribution, len(prompt), rng, 3),) if drafts else (),
            limits=Limits(3),
            rng=rng,
        )
        done = list(rounds)
        assert not drafts or done[0].drafted == 2
        return tuple(token for r in done for token in r.tokens)

    ours, theirs = (distribution_of(lambda rng, d=d: answer(rng, d)) for d in (True, False))  # type: ignore[misc]
    assert len(theirs) == 27
    assert sum(abs(ours.get(k, 0.0) - p) for k, p in theirs.items()) < 1e-12


def test_it_drafts_only_where_the_copy_is_smaller(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    sequence = CachedSequence(weights.session(None), WIDTHS)
    policy = SinksAndWindow(**SMALL)
    proposer = drafting(weights, policy, sequence, Sampling())
    done = run(weights, None, prompt_for(weights, 20), proposers=(proposer,), sequence=sequence)
    first = next(i for i, r in enumerate(done.rounds) if r.drafted)
    assert all(len(r.tokens) == 1 for r in done.rounds[:first])
    assert 20 + first - 1 > policy.budget + policy.every
    assert sum(r.drafted for r in done.rounds[first:]) > 20


class Counting(SinksAndWindow):
    """Notes what it was asked to choose from."""

    __slots__ = ()
    seen: list[int] = []  # noqa: RUF012 - of one test

    def select(self, view: Any) -> Indices:
        self.seen.append(view.n_entries)
        return super().select(view)


def test_the_copy_is_made_of_the_targets_own_entries(opened: Callable[[str], Weights]) -> None:
    weights = opened("reference")
    sequence = CachedSequence(weights.session(None), WIDTHS)
    policy = Counting(**SMALL)
    Counting.seen.clear()
    copy = CompressedCopy(sequence, policy)
    context = prompt_for(weights, 60)
    sequence.cover(context[:-1])
    assert copy.nbytes == 0
    made = copy.covering(context)
    assert made is not None and made.tokens.tolist() == context[:-1].tolist()
    assert made.n_entries == 24 and made.session.positions.tolist() == [0, 1, *range(37, 59)]
    for layer in range(weights.info.n_layers):
        ours, theirs = made.session.keys_values(layer)[0], sequence.session.keys_values(layer)[0]
        assert np.array_equal(ours, theirs[:, made.session.positions])
    assert copy.nbytes == made.session.nbytes < sequence.session.nbytes
    longer = np.concatenate([context, prompt_for(weights, 7, seed=4)])
    for n in (60, 64, 67):
        sequence.cover(longer[: n - 1])
        assert copy.covering(longer[:n]) is made, "made anew too early"
    sequence.cover(np.concatenate([longer, longer])[:68])
    again = copy.covering(np.concatenate([longer, longer])[:69])
    assert again is not made and Counting.seen == [59, 68]
    sequence.cover(longer[:50])
    changed = copy.covering(longer[:51])  # another text: what was copied is of no use
    assert changed is not None and changed is not again and changed.tokens.tolist() == longer[:50].tolist()
    sequence.cover(longer[:20])
    assert copy.covering(longer[:21]) is None and copy.nbytes == 0


def test_over_a_target_that_is_compressed_itself(opened: Callable[[str], Weights]) -> None:
    weights = opened("onnx")
    prompt = prompt_for(weights)
    outer, inner = (
        KeyDiff(budget=40, every=16, sinks=2, window=8),
        SinksAndWindow(budget=12, every=8, sinks=2, window=6),
    )
    plain = run(weights, outer, prompt)
    sequence = CachedSequence(weights.session(entries_for(outer, WIDTHS, weights.info)), WIDTHS, outer)
    proposer = drafting(weights, inner, sequence, Sampling())
    ours = run(weights, outer, prompt, proposers=(proposer,), sequence=sequence)
    assert ours.tokens.tolist() == plain.tokens.tolist()
    assert sum(r.drafted for r in ours.rounds) > 20 and ours.most <= 56


def test_what_cannot_be_done_is_refused(opened: Callable[[str], Weights]) -> None:
    blind: Any = ToyWeights(vocab_size=5, context_length=64, abilities=ALL)
    alone: Any = ToyWeights(vocab_size=5, context_length=64, abilities=(ALL | SEEN) - {"fork"})
    for weights, policy, error, words in (
        (blind, KeyDiff(per_head=False), AbilityError, "needs keys.*self:sinks"),
        (blind, SnapKV(per_head=False), AbilityError, "needs keys, queries"),
        (alone, SinksAndWindow(), AbilityError, "needs fork.*toy engine"),
        (opened("reference"), SirLLM(), OptionError, "watches every token"),
        (opened("reference"), H2O(), OptionError, "watches every token"),
        (opened("reference"), KVzip(), OptionError, "or runs it twice"),
    ):
        with pytest.raises(error, match=words):
            CompressedCopy(CachedSequence(weights.session(None)), policy)


@pytest.mark.parametrize(
    ("tokens", "drafted", "accepted", "expected"),
    [
        ((5, 6, 7), 4, 2, (3, 2)),  # two accepted, one rejected, one never judged
        ((5, 6, 7), 2, 2, (2, 2)),  # a bonus token judges nothing
        ((5,), 3, 0, (1, 0)),
        ((5, 6), 3, 2, (2, 2)),  # the second accepted token was a stop token: the third was not judged
        ((5,), 0, 0, (0, 0)),
    ],
)
def test_only_judged_tokens_count(tokens: Any, drafted: int, accepted: int, expected: Any) -> None:
    done = Round(tokens, drafted, accepted, 4, 0.0, 0.0, 0.0, "self")
    other = Round((1, 2), 3, 1, 4, 0.0, 0.0, 0.0, "suffix")
    assert judged([done, other], "self") == expected


EVERYWHERE = [
    ("onnx", "self:snapkv", {}),
    ("onnx", "self:keydiff", {}),
    ("onnx", "self:sinks", {}),
    ("openvino", "self:sinks", {}),
    ("openvino", "self:chunk-keydiff", {}),
    ("llamacpp", "self:sinks", {}),
    ("reference", "self:tova", {}),
]


@pytest.mark.parametrize(("engine", "draft", "options"), EVERYWHERE)
def test_on_any_engine(
    engine: str, draft: str, options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pilotfish

    need(engine)
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_file(tmp_path, 512)
    settings = f"{draft}:budget=48,every=32,window=16"
    with (
        pilotfish.load(path, engine, draft=settings, options=options, threads=1, proposers=()) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4), draft=True, proposers=()) as drafted,
    ):
        prompt = "the cat and the dog and the hen in the pen " * 6
        theirs = plain.generate(prompt, max_new_tokens=64)
        stream = drafted.stream(prompt, max_new_tokens=64)
        live = [stream.self_acceptance for _ in stream]
        ours = stream.result
        assert ours is not None and ours.token_ids == theirs.token_ids and len(ours.token_ids) > 5
        assert ours.stats.self_judged > 5 and ours.stats.self_acceptance == stream.self_acceptance == live[-1]
        assert ours.stats.as_dict()["self_acceptance"] == ours.stats.self_acceptance
        assert theirs.stats.self_acceptance is None and ours.stats.kv_bytes > theirs.stats.kv_bytes
        assert model.generate(prompt, max_new_tokens=64).token_ids == theirs.token_ids  # the policy decides


def test_load_refuses_it_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pilotfish

    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf")
    for draft, error, words in (
        ("self:nonsense", OptionError, "no cache policy 'nonsense'"),
        ("self:sirllm", OptionError, "watches every token"),
        ("self:sinks:budget=9", OptionError, "cannot hold"),
    ):
        with pytest.raises(error, match=words):
            pilotfish.load(path, "reference", draft=draft)
    with pytest.raises(OptionError, match="speculate=False"):
        pilotfish.load(path, "reference", draft="self", speculate=False)
    with pytest.raises(OptionError, match="draft_engine"):
        pilotfish.load(path, "reference", draft="self", draft_engine="onnx")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("draft", ["self:sinks:budget=192,every=64", "self:keydiff:budget=192,every=64"])
def test_on_real_weights(draft: str, capsys: pytest.CaptureFixture[str]) -> None:
    import pilotfish

    pytest.importorskip("onnxruntime")
    with (
        pilotfish.load(smollm2(), "onnx", draft=draft, threads=2, proposers=()) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(3), draft=True, proposers=()) as drafted,
    ):
        prompt = PROSE * 8 + "Summarise this in one sentence."
        ours, theirs = (m.generate(prompt, max_new_tokens=96) for m in (drafted, plain))
        assert ours.token_ids == theirs.token_ids, "one row class: no near-tie is excused"
        share = ours.stats.self_acceptance
        assert share is not None and share > 0.3
        with capsys.disabled():
            print(f"\n{draft}: {ours.stats.self_accepted} of {ours.stats.self_judged} tokens alike, 0 near-ties")


def test_a_sequence_may_cover_more_than_it_holds() -> None:
    weights: Any = ToyWeights(vocab_size=5, context_length=64)
    session = weights.session(20)
    tokens: Tokens = np.arange(12) % 5
    session.forward(tokens, n_logits=0)
    session.keep(np.array([0, 1, 8, 9, 10, 11]))
    sequence = CachedSequence(session, covered=tokens)
    assert (sequence.n_entries, sequence.n_evicted, sequence.longest, sequence.free) == (6, 6, 26, 14)
    longer = np.concatenate([tokens, [1, 2, 3]])
    assert sequence.cover(longer) == 12 and session.positions.tolist() == [0, 1, *range(8, 15)]
