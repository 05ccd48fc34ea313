"""The decode loop over every outcome of chance: settings, policies and the distribution that has to come out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from enumerate_randomness import LazyRng

from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits, generate
from pilotfish.runtime.interfaces import (
    Budget,
    Distribution,
    Draft,
    DraftLengthPolicy,
    EncoderInfo,
    Proposer,
    Session,
    Tokens,
)
from pilotfish.runtime.profiling.cost_curve import CostCurve
from pilotfish.runtime.profiling.row_classes import RowRule
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Confidence, Fixed, RenewalReward
from pilotfish.runtime.speculation.ngram_table import NGramTable
from pilotfish.runtime.speculation.proposers import DraftModel, NGram, Suffix
from pilotfish.testing.toy import ToyWeights

V = 3


PROMPT = np.array([0, 1, 2, 0, 1], dtype=np.int64)


SETTINGS = {
    "plain": Sampling(temperature=1.0),
    "truncated": Sampling(temperature=0.7, top_k=2),
    "nucleus": Sampling(temperature=1.3, top_p=0.8),
    "penalised": Sampling(temperature=1.0, repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.2),
    "biased": Sampling(
        temperature=1.0,
        min_p=0.2,
        logit_bias={1: 0.5},
        processors=(lambda x, c: x - 0.1 * len(c) * (np.arange(len(x)) == c[-1]),),
    ),
    "greedy": Sampling(),
}


def target_distribution(weights: ToyWeights, sampling: Sampling, n_tokens: int) -> dict[tuple[int, ...], float]:
    """The distribution of n tokens by the chain rule, without any of the runtime but Sampling."""
    distribution: dict[tuple[int, ...], float] = {}
    for sequence in itertools.product(range(V), repeat=n_tokens):
        weight = 1.0
        for i, token in enumerate(sequence):
            context = np.array([*PROMPT, *sequence[:i]], dtype=np.int64)
            session = weights.session()
            logits = session.forward(context, n_logits=1).logits[0]
            weight *= sampling.distribution(logits, context, len(PROMPT)).prob(token)
        distribution[sequence] = weight
    return distribution


def total_variation(a: dict[tuple[int, ...], float], b: dict[tuple[int, ...], float]) -> float:
    return 0.5 * sum(abs(a.get(k, 0.0) - b.get(k, 0.0)) for k in a.keys() | b.keys())


class OneHotTree:
    """Drafts every token below the context, two levels deep: any sibling may be right."""

    name = "one-hot tree"

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        tokens = [2, 0, 1, 1, 2, 0][: budget.max_tokens]
        parents = [0, 0, 1, 1, 2, 2][: budget.max_tokens]
        return Draft(np.array(tokens), np.array(parents), expected=np.full(len(tokens), 0.5))


class SampledTree:
    """Draws siblings from another model's distribution, with or without replacement, and submits all of them."""

    def __init__(self, weights: ToyWeights, rng: LazyRng, sampling: Sampling, replacement: bool) -> None:
        self.name = "sampled tree"
        self.weights, self.rng, self.sampling, self.replacement = weights, rng, sampling, replacement

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        distributions: list[Distribution] = []
        paths = {0: context}
        for row in (0, 1):
            if row not in paths:
                break
            logits = self.weights.session().forward(paths[row], n_logits=1).logits[0]
            q = self.sampling.distribution(logits, paths[row], len(PROMPT))
            for _ in range(2):
                if len(tokens) == budget.max_tokens or not q.probs.sum():
                    break
                token = q.pick(self.rng.random())
                tokens.append(token)
                parents.append(row)
                distributions.append(q)
                paths[len(tokens)] = np.array([*paths[row], token])
                if not self.replacement:
                    if q.prob(token) > 1 - 1e-12:
                        break
                    q = q.without(token)
        chances = np.full(len(tokens), 0.5)
        return Draft(np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64), tuple(distributions), chances)


class Wrong:
    """Always drafts the same three tokens, and claims to be certain."""

    name = "wrong"

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        k = min(3, budget.max_tokens)
        return Draft(np.array([2, 2, 0][:k], dtype=np.int64), expected=np.ones(k))


def draft_model(rng: LazyRng, sampling: Sampling, seed: int) -> DraftModel:
    weights = ToyWeights(V, seed=seed)
    return DraftModel(CachedSequence(weights.session()), sampling, len(PROMPT), rng, V)  # type: ignore[arg-type]


def learned(tokens: list[int]) -> NGramTable:
    table = NGramTable(bits=8)
    table.learn(tokens, 0)
    return table


PROPOSERS: dict[str, Callable[[LazyRng, Sampling], tuple[Proposer, ...]]] = {
    "none": lambda rng, s: (),
    "suffix": lambda rng, s: (Suffix(),),
    "suffix tree": lambda rng, s: (Suffix(branches=2),),
    "n-grams": lambda rng, s: (NGram(learned([0, 1, 2, 0, 2, 1, 1, 0])),),
    "draft model": lambda rng, s: (draft_model(rng, s, 1),),
    "itself": lambda rng, s: (draft_model(rng, s, 0),),
    "both": lambda rng, s: (Suffix(), draft_model(rng, s, 1)),
    "one-hot tree": lambda rng, s: (OneHotTree(),),
    "tree with replacement": lambda rng, s: (SampledTree(ToyWeights(V, seed=2), rng, s, True),),
    "tree without replacement": lambda rng, s: (SampledTree(ToyWeights(V, seed=2), rng, s, False),),
    "draft sampled otherwise": lambda rng, s: (draft_model(rng, Sampling(temperature=2.0), 1),),
    "wrong": lambda rng, s: (Wrong(),),
}


POLICIES: dict[str, Callable[[], DraftLengthPolicy]] = {
    "fixed": lambda: Fixed(2),
    "confidence": lambda: Confidence(0.5),
    "renewal": RenewalReward,
}


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks evenly, restarted by every run, so that a policy that looks at it can be enumerated."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * 1e-3)


def flat_curve() -> CostCurve:
    widths = np.arange(1, 34)
    return CostCurve(widths, 2e-3 + 1e-5 * widths)


def run(
    rng: LazyRng,
    sampling: Sampling,
    proposers: str,
    policy: str,
    rows: RowRule,
    n_tokens: int,
    *,
    narrow: bool = False,
    row_noise: float = 0.0,
) -> tuple[int, ...]:
    made = PROPOSERS[proposers](rng, sampling)
    rounds = generate(
        CachedSequence(ToyWeights(V, row_noise=row_noise).session(), rows),
        PROMPT,
        sampling=sampling,
        drafting=Drafting(POLICIES[policy](), flat_curve(), rows),
        proposers=made,
        limits=Limits(max_new_tokens=n_tokens),
        rng=rng,  # type: ignore[arg-type]
        narrow=narrow,
    )
    return tuple(t for r in rounds for t in r.tokens)


# An encoder-decoder that copies, about one source

SOURCE, BEGIN = np.array([1, 2, 0, 2], dtype=np.int64), np.array([2, 0], dtype=np.int64)


def copying() -> Session:
    return ToyWeights(V, encoder=EncoderInfo(decoder_start=(2, 0)), copying=1.5).session()


def answer_distribution(
    sampling: Sampling,
    sequences: Iterable[tuple[int, ...]],
    forbid: Callable[[int], Sequence[int]] = lambda place: (),
) -> dict[tuple[int, ...], float]:
    """The distribution of its answers by the chain rule, without any of the runtime but Sampling.

    forbid: tokens that are never said at this place of the answer.
    """
    distribution: dict[tuple[int, ...], float] = {}
    session = copying()
    for sequence in sequences:
        weight = 1.0
        for i, token in enumerate(sequence):
            context = np.array([*BEGIN, *sequence[:i]], dtype=np.int64)
            session.encode(SOURCE)
            logits = session.forward(context, n_logits=1).logits[0].copy()
            logits[list(forbid(i))] = -np.inf
            weight *= sampling.distribution(logits, context, len(BEGIN)).prob(token)
        distribution[sequence] = weight
    return distribution


def run_answer(
    rng: LazyRng, sampling: Sampling, proposers: tuple[Proposer, ...], policy: str, rows: RowRule, limits: Limits
) -> tuple[int, ...]:
    """An answer of it, with drafts."""
    rounds = generate(
        CachedSequence(copying(), rows),
        BEGIN,
        source=SOURCE,
        sampling=sampling,
        drafting=Drafting(POLICIES[policy](), flat_curve(), rows),
        proposers=proposers,
        limits=limits,
        rng=rng,  # type: ignore[arg-type]
    )
    return tuple(t for r in rounds for t in r.tokens)
