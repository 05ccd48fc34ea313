"""Promise 1, by exact enumeration: with every draft, tree and length policy, the output distribution is the
target's."""

from __future__ import annotations

import numpy as np
import pytest
from enumerate_randomness import LazyRng, distribution_of
from enumerated_loop import (
    POLICIES,
    PROMPT,
    PROPOSERS,
    SETTINGS,
    OneHotTree,
    V,
    Wrong,
    flat_curve,
    run,
    target_distribution,
    total_variation,
)

from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits, generate
from pilotfish.runtime.interfaces import Distribution, Draft
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH, RowRule
from pilotfish.runtime.sampling.speculative_sampling import verify
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import Suffix
from pilotfish.testing.toy import ToySession, ToyWeights


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("proposers", PROPOSERS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_output_distribution_is_the_targets(settings: str, proposers: str, policy: str) -> None:
    sampling = SETTINGS[settings]
    distribution = distribution_of(lambda rng: run(rng, sampling, proposers, policy, ANY_WIDTH, 3))
    assert total_variation(distribution, target_distribution(ToyWeights(V), sampling, 3)) <= 1e-12


@pytest.mark.parametrize("proposers", ["suffix", "draft model", "wrong"])
def test_output_distribution_in_a_class_of_wide_steps(proposers: str) -> None:
    rows = RowRule((2, 3, 4))
    distribution = distribution_of(lambda rng: run(rng, SETTINGS["plain"], proposers, "renewal", rows, 3))
    assert total_variation(distribution, target_distribution(ToyWeights(V), SETTINGS["plain"], 3)) <= 1e-12


@pytest.mark.parametrize("policy", ["fixed", "renewal"])
@pytest.mark.parametrize("proposers", ["suffix", "n-grams", "draft model", "both", "one-hot tree", "wrong"])
@pytest.mark.parametrize("settings", ["plain", "greedy"])
def test_steps_of_one_row_where_nothing_repeats_change_no_distribution(
    settings: str, proposers: str, policy: str
) -> None:
    """The toy remembers which of its entries a one-row step has written: a draft that moves one is seen."""
    sampling, rows = SETTINGS[settings], RowRule((2, 3, 4), trees=False)

    def answer(rng: LazyRng, who: str, narrow: bool) -> tuple[int, ...]:
        return run(rng, sampling, who, policy, rows, 3, narrow=narrow, row_noise=0.7)

    plain = distribution_of(lambda rng: answer(rng, "none", True))
    assert total_variation(distribution_of(lambda rng: answer(rng, proposers, True)), plain) <= 1e-12
    if settings != "greedy":
        assert total_variation(distribution_of(lambda rng: answer(rng, "none", False)), plain) > 0.05


def test_dropping_a_sampled_token_for_its_own_probability_would_be_seen() -> None:
    """The trap of value-dependent truncation: this harness must be able to fail."""
    p, q = Distribution(np.array([0.5, 0.3, 0.2])), Distribution(np.array([0.2, 0.3, 0.5]))

    def biased(rng: LazyRng) -> tuple[int, ...]:
        token = q.pick(rng.random())  # type: ignore[arg-type]
        kept = [token] if q.prob(token) >= 0.25 else []
        draft = Draft(np.array(kept, dtype=np.int64), distributions=tuple(q for _ in kept))
        verdict = verify(draft, lambda row, path: p, rng)  # type: ignore[arg-type]
        return (int(draft.tokens[verdict.rows[0] - 1]) if verdict.rows else verdict.token,)

    assert total_variation(distribution_of(biased), {(i,): float(x) for i, x in enumerate(p.probs)}) > 0.05


def test_seeded_output_does_not_depend_on_one_hot_drafts() -> None:
    sampling = SETTINGS["plain"]
    for seed in range(20):
        outputs = []
        for proposers in ((), (Suffix(),), (Wrong(),), (OneHotTree(),)):
            rounds = generate(
                CachedSequence(ToyWeights(V).session()),
                PROMPT,
                sampling=sampling,
                drafting=Drafting(Fixed(3), flat_curve(), ANY_WIDTH),
                proposers=proposers,
                limits=Limits(max_new_tokens=20),
                rng=np.random.default_rng(seed),
            )
            outputs.append([t for r in rounds for t in r.tokens])
        assert outputs[0] == outputs[1] == outputs[2] == outputs[3]


def test_sampled_run_fits_the_distribution_by_chi_square() -> None:
    """The same claim on real random numbers: 4,000 runs of two tokens against the enumerated distribution, p >
    0.001."""
    sampling, n_runs = SETTINGS["truncated"], 4000
    expected = target_distribution(ToyWeights(V), sampling, 2)
    counts = dict.fromkeys(expected, 0)
    for seed in range(n_runs):
        rng = np.random.default_rng(seed)
        counts[run(rng, sampling, "draft model", "fixed", ANY_WIDTH, 2)] += 1  # type: ignore[arg-type]
    possible = [k for k, p in expected.items() if p > 0]
    assert all(counts[k] == 0 for k in expected if k not in possible)
    statistic = sum((counts[k] - n_runs * expected[k]) ** 2 / (n_runs * expected[k]) for k in possible)
    freedom = len(possible) - 1
    # Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal; 3.09 is p = 0.001.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert z < 3.09, (statistic, freedom)


def test_accepted_path_leaves_exactly_its_entries() -> None:
    for proposers in PROPOSERS:
        rng = np.random.default_rng(5)
        session: ToySession = ToyWeights(V).session()
        sequence = CachedSequence(session)
        rounds = generate(
            sequence,
            PROMPT,
            sampling=SETTINGS["plain"],
            drafting=Drafting(Fixed(4), flat_curve(), ANY_WIDTH),
            proposers=PROPOSERS[proposers](rng, SETTINGS["plain"]),  # type: ignore[arg-type]
            limits=Limits(max_new_tokens=12),
            rng=rng,
        )
        out = list(PROMPT)
        for done in rounds:
            out += done.tokens
            assert [e.token for e in session.entries] == out[:-1]
            assert list(session.positions) == list(range(len(out) - 1))
            assert list(sequence.tokens) == out[:-1]
