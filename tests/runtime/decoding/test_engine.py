"""The decode loop on the toy engine: invariants, limits, stops, cancels, errors; random programs by hypothesis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from enumerated_loop import OneHotTree, flat_curve
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.runtime.cache.sequence import PREFILL_CHUNK, CachedSequence
from pilotfish.runtime.decoding.loop import Limits, UpTo, generate
from pilotfish.runtime.errors import AbilityError, ContextFullError, EngineError, OptionError
from pilotfish.runtime.interfaces import Budget, Draft, DraftLengthPolicy, Proposer, Round, Tokens
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH, RowClasses, RowRule
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Confidence, Fixed, RenewalReward
from pilotfish.runtime.speculation.proposers import DraftModel, Suffix
from pilotfish.testing.toy import ToyWeights

V = 6


class Random:
    """Drafts random chains or trees: mostly wrong, sometimes right."""

    name = "random"

    def __init__(self, seed: int, tree: bool) -> None:
        self.rng, self.tree = np.random.default_rng(seed), tree

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        k = int(self.rng.integers(0, budget.max_tokens + 1))
        tokens = self.rng.integers(0, V, k)
        parents = np.array([self.rng.integers(0, i + 1) for i in range(k)], dtype=np.int64) if self.tree else None
        return Draft(tokens, parents, expected=np.sort(self.rng.random(k))[::-1].copy() if not self.tree else None)


def run(
    prompt: list[int],
    proposers: tuple[Proposer, ...] = (),
    *,
    policy: DraftLengthPolicy | None = None,
    rows: RowRule = ANY_WIDTH,
    sequence: CachedSequence | None = None,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    **toy: object,
) -> Iterator[Round]:
    return generate(
        sequence or CachedSequence(ToyWeights(V, **toy).session(), rows),  # type: ignore[arg-type]
        np.array(prompt, dtype=np.int64),
        sampling=sampling or Sampling(),
        drafting=Drafting(policy or RenewalReward(), flat_curve(), rows),
        proposers=proposers,
        limits=limits or Limits(max_new_tokens=30),
        rng=np.random.default_rng(seed),
    )


def tokens(rounds: Iterator[Round]) -> list[int]:
    return [t for r in rounds for t in r.tokens]


@settings(max_examples=150)
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
    tree=st.booleans(),
    policy=st.sampled_from([Fixed(0), Fixed(1), Fixed(5), Confidence(0.3), None]),
    rows=st.sampled_from([ANY_WIDTH, RowRule((2, 3, 4, 5)), RowRule((4, 8))]),
    n=st.integers(1, 40),
    stop=st.integers(0, V + 3),
    temperature=st.sampled_from([0.0, 0.9]),
    penalty=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_any_draft_any_limit_any_stop_gives_the_plain_answer(
    prompt: list[int],
    tree: bool,
    policy: DraftLengthPolicy | None,
    rows: RowRule,
    n: int,
    stop: int,
    temperature: float,
    penalty: float,
    seed: int,
) -> None:
    limits = Limits(max_new_tokens=n, stop_ids=frozenset({stop}))
    sampling = Sampling(temperature=temperature, frequency_penalty=penalty)
    plain = list(run(prompt, sampling=sampling, limits=limits, seed=seed))
    sequence = CachedSequence(ToyWeights(V).session(), rows)
    rounds = list(
        run(
            prompt,
            (Random(seed, tree), Suffix()),
            policy=policy,
            rows=rows,
            sequence=sequence,
            sampling=sampling,
            limits=limits,
            seed=seed,
        )
    )
    out = [t for r in rounds for t in r.tokens]
    assert out == [t for r in plain for t in r.tokens]
    assert len(out) == n or out[-1] == stop
    assert rounds[-1].finish_reason == ("stop" if out[-1] == stop else "length") == plain[-1].finish_reason
    assert all(r.finish_reason is None for r in rounds[:-1])
    assert sequence.tokens.tolist() == [*prompt, *out][:-1] == [e.token for e in sequence.session.entries]  # type: ignore[attr-defined]
    for r in rounds:
        assert 0 <= r.accepted <= r.drafted and len(r.tokens) <= r.accepted + 1 and r.width in rows.widths


def test_a_full_context_is_used_to_its_last_entry() -> None:
    for rows in (ANY_WIDTH, RowRule((2, 3, 4)), RowRule((4, 8))):
        sequence = CachedSequence(ToyWeights(V, context_length=20).session(), rows)
        out = tokens(run([1, 2], (Suffix(),), rows=rows, sequence=sequence, limits=Limits()))
        assert 2 + len(out) == 20 + 2 - rows.minimum
        assert out == tokens(run([1, 2], limits=Limits(max_new_tokens=len(out))))


def test_a_length_that_nobody_asked_for_is_what_there_is_room_for() -> None:
    for rows in (ANY_WIDTH, RowRule((2, 3, 4)), RowRule((4, 8))):
        sequence = CachedSequence(ToyWeights(V, context_length=20).session(), rows)
        until_full = tokens(run([1] * 12, rows=rows, sequence=sequence, limits=Limits()))
        assert tokens(run([1] * 12, rows=rows, sequence=sequence, limits=Limits(UpTo(256)))) == until_full
        assert tokens(run([1] * 12, rows=rows, sequence=sequence, limits=Limits(UpTo(3)))) == until_full[:3]
        with pytest.raises(ContextFullError, match=r"max_new_tokens is 256"):
            next(run([1] * 12, rows=rows, sequence=sequence, limits=Limits(256)))
        with pytest.raises(ContextFullError, match=r"prompt has 22 tokens, but"):
            next(run([1] * 22, rows=rows, sequence=sequence, limits=Limits(UpTo(256))))


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    sequence = CachedSequence(ToyWeights(V, context_length=23).session(20))
    list(run([1, 2, 3], sequence=sequence, limits=Limits(max_new_tokens=3)))
    before = sequence.tokens.tolist()
    with pytest.raises(ContextFullError, match=r"prompt has 15 tokens and max_new_tokens is 9, .* holds 20.*=23"):
        next(run([1] * 15, sequence=sequence, limits=Limits(max_new_tokens=9)))
    with pytest.raises(ContextFullError, match=r"prompt has 22 tokens, .*max_context=22"):
        next(run([1] * 22, sequence=sequence, limits=Limits()))
    assert sequence.tokens.tolist() == before
    list(run([1] * 15, sequence=sequence, limits=Limits(max_new_tokens=6)))


@pytest.mark.parametrize(
    ("prompt", "limits", "message"),
    [
        ([], Limits(), "prompt is empty"),
        ([1], Limits(max_new_tokens=0), "max_new_tokens is 0"),
        ([V], Limits(max_new_tokens=1), "outside of 0..5"),
        ([-1], Limits(max_new_tokens=1), "outside of 0..5"),
    ],
)
def test_impossible_requests(prompt: list[int], limits: Limits, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        next(run(prompt, limits=limits))


def test_a_common_prefix_is_not_run_again() -> None:
    sequence = CachedSequence(ToyWeights(V).session())
    out = tokens(run([1, 2, 3, 4], sequence=sequence, limits=Limits(max_new_tokens=4)))
    session = sequence.session
    session.tokens_run.clear()  # type: ignore[attr-defined]
    follow_up = [1, 2, 3, 4, *out, 5, 0]
    again = tokens(run(follow_up, sequence=sequence, limits=Limits(max_new_tokens=1)))
    assert session.tokens_run == [out[-1], 5, 0]  # type: ignore[attr-defined]
    assert again == tokens(run(follow_up, limits=Limits(max_new_tokens=1)))


def test_a_consumer_that_stops_early_leaves_a_true_cache() -> None:
    sequence = CachedSequence(ToyWeights(V).session())
    rounds = run([1, 2, 3], (Random(0, False),), policy=Fixed(4), sequence=sequence)
    done = [next(rounds), next(rounds)]
    rounds.close()  # type: ignore[attr-defined]
    out = [t for r in done for t in r.tokens]
    assert sequence.tokens.tolist() == [1, 2, 3, *out][:-1]
    assert tokens(run([1, 2, 3], sequence=sequence)) == tokens(run([1, 2, 3]))


def test_cancel_in_the_prompt_and_between_rounds() -> None:
    asked: list[int] = []
    sequence = CachedSequence(ToyWeights(V, context_length=2000).session())

    def cancelled() -> bool:
        asked.append(len(sequence.tokens))
        return len(asked) > 2

    prompt = [1, 2, 3] * 400
    rounds = list(run(prompt, sequence=sequence, limits=Limits(max_new_tokens=5, cancelled=cancelled)))
    assert [r.finish_reason for r in rounds] == ["cancelled"] and tokens(iter(rounds)) == []
    assert asked == [0, PREFILL_CHUNK, 2 * PREFILL_CHUNK]
    assert sequence.tokens.tolist() == prompt[: 2 * PREFILL_CHUNK]

    answers = iter([False] * 4 + [True] * 9)
    rounds = list(run([1, 2], limits=Limits(max_new_tokens=50, cancelled=lambda: next(answers))))
    assert rounds[-1].finish_reason == "cancelled" and len(tokens(iter(rounds))) >= 1


def test_an_engine_that_fails_leaves_a_cache_that_can_be_used_again() -> None:
    sequence = CachedSequence(ToyWeights(V).session())
    session = sequence.session
    working = session.forward
    rounds = run([1, 2, 3], sequence=sequence)
    next(rounds)

    def broken(*args: object, **kwargs: object) -> None:
        raise EngineError("the device is gone")

    session.forward = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(EngineError):
        next(rounds)
    session.forward = working  # type: ignore[method-assign]
    assert tokens(run([1, 2, 3], sequence=sequence)) == tokens(run([1, 2, 3]))


def test_trees_need_the_ability() -> None:
    with pytest.raises(AbilityError, match="toy engine cannot verify trees"):
        tokens(run([1, 2, 3], (OneHotTree(),), policy=Fixed(4), abilities=frozenset()))


def test_one_row_class_makes_plain_and_speculative_the_same_bits() -> None:
    """On an engine whose single-row kernel disagrees, only a common class keeps greedy output equal."""

    def both(rows: RowRule) -> tuple[list[int], list[int]]:
        plain = run([1, 2, 3], rows=rows, row_noise=1.0)
        drafted = run([1, 2, 3], (Random(3, False),), policy=Fixed(3), rows=rows, row_noise=1.0)
        return tokens(plain), tokens(drafted)

    plain, drafted = both(RowRule((2, 3, 4, 5, 6, 7, 8)))
    assert plain == drafted
    plain, drafted = both(ANY_WIDTH)
    assert plain != drafted


def test_a_draft_model_that_is_the_target_is_always_accepted_and_speeds_up() -> None:
    weights = ToyWeights(V)
    draft = DraftModel(CachedSequence(weights.session()), Sampling(), 3, np.random.default_rng(0), V)
    rounds = list(run([1, 2, 3], (draft,), policy=Fixed(4), limits=Limits(max_new_tokens=31)))
    assert all(r.accepted == r.drafted for r in rounds[:-1])
    assert len(rounds) <= 8


def test_prefill_is_chunked_padded_to_the_class_and_exact() -> None:
    rows = RowRule((2, 3, 4))
    for n in (1, 2, 3, PREFILL_CHUNK, PREFILL_CHUNK + 1, PREFILL_CHUNK + 2, 2 * PREFILL_CHUNK + 1):
        prompt = (np.arange(n) % V).tolist()
        sequence = CachedSequence(ToyWeights(V, context_length=1100).session(), rows)
        out = tokens(run(prompt, rows=rows, sequence=sequence, limits=Limits(max_new_tokens=4)))
        assert 1 not in sequence.session.widths  # type: ignore[attr-defined]
        assert out == tokens(run(prompt, limits=Limits(max_new_tokens=4), context_length=1100))


def test_cover_at_the_very_end_of_the_context_runs_entries_again_instead_of_padding() -> None:
    rows = RowRule((2, 3, 4))
    sequence = CachedSequence(ToyWeights(V, context_length=8).session(), rows)
    sequence.cover(np.arange(7) % V)
    sequence.cover(np.arange(8) % V)
    assert sequence.tokens.tolist() == [int(x) for x in np.arange(8) % V] == [e.token for e in sequence.session.entries]  # type: ignore[attr-defined]


def test_row_rule_stays_in_the_class_with_the_narrowest_step() -> None:
    assert RowClasses(((1,), (2, 3, 8, 9))).rule().widths == (2, 3, 4, 5, 6, 7, 8, 9)
    assert RowClasses(((1, 2, 3), (4,), (8, 16))).rule().widths == (1, 2, 3)
    assert RowClasses(((1, 8, 16), (2,), (3, 4))).rule().widths == (1, *range(8, 17))
    assert RowClasses(((1,), (2,), (3,))).rule().widths == (2,)
    assert RowClasses(((1,),)).rule().widths == (1,)
    rule = RowRule((2, 4, 8))
    assert [rule.fit(n) for n in (1, 2, 3, 8)] == [2, 2, 4, 8]
    assert [rule.floor(n) for n in (1, 3, 9)] == [None, 2, 8]
    with pytest.raises(ValueError, match="widest is 8"):
        rule.fit(9)


@pytest.mark.parametrize("proposer", [Random(0, False), OneHotTree()])
def test_a_processor_that_raises_leaves_a_true_cache(proposer: Proposer) -> None:
    calls: list[int] = []

    def fails_late(logits: np.ndarray, context: Tokens) -> np.ndarray:
        calls.append(len(context))
        if len(calls) == 4:
            raise RuntimeError("a bug in the caller's processor")
        return logits

    sequence = CachedSequence(ToyWeights(V).session())
    with pytest.raises(RuntimeError):
        tokens(
            run([1, 2, 3], (proposer,), policy=Fixed(4), sequence=sequence, sampling=Sampling(processors=(fails_late,)))
        )
    assert sequence.tokens.tolist() == [e.token for e in sequence.session.entries]  # type: ignore[attr-defined]
    assert tokens(run([1, 2, 3], sequence=sequence)) == tokens(run([1, 2, 3]))
