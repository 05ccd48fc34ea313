from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.runtime.errors import EngineError, OptionError
from pilotfish.runtime.interfaces import Distribution
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.sampling.speculative_sampling import residual

NONE = np.empty(0, dtype=np.int64)


def distribution(
    logits: list[float], context: list[int] | None = None, n_prompt: int = 0, **settings: object
) -> np.ndarray:
    context_ids = np.array(context or [0], dtype=np.int64)
    made = Sampling(**settings).distribution(np.array(logits, dtype=np.float32), context_ids, n_prompt)  # type: ignore[arg-type]
    return made.dense(len(logits))


def test_temperature_is_softmax() -> None:
    expected = np.exp(np.array([1.0, 2.0, 0.0]) / 0.5)
    assert np.allclose(distribution([1, 2, 0], temperature=0.5), expected / expected.sum(), atol=1e-12)


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert distribution([1, 3, 3]).tolist() == [0, 1, 0]


def test_top_k_keeps_ties() -> None:
    assert (distribution([1, 3, 2, 2], temperature=1.0, top_k=2) > 0).tolist() == [False, True, True, True]


def test_top_p_is_the_smallest_set_with_the_mass() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert np.allclose(distribution(logits, temperature=1.0, top_p=0.6), [0.625, 0.375, 0, 0], atol=1e-6)
    assert (distribution(logits, temperature=1.0, top_p=0.81) > 0).sum() == 3


def test_top_p_over_a_large_vocabulary_equals_the_full_sort() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.01, 3.0):  # nearly uniform: the nucleus is larger than the head that is looked at first
        logits = rng.normal(0, scale, 5000)
        probs = np.exp(logits.astype(np.float32).astype(np.float64))
        probs /= probs.sum()
        order = np.argsort(-probs, kind="stable")
        n = int(np.searchsorted(np.cumsum(probs[order]), 0.9)) + 1
        kept = np.flatnonzero(distribution(logits.tolist(), temperature=1.0, top_p=0.9))
        assert kept.tolist() == sorted(order[:n].tolist())


def test_min_p_is_relative_to_the_largest() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert (distribution(logits, temperature=1.0, min_p=0.4) > 0).tolist() == [True, True, False, False]


def test_repetition_penalty_looks_at_prompt_and_output_once() -> None:
    out = distribution([2.0, -2.0, 1.0], [0, 1, 1], 2, temperature=1.0, repetition_penalty=2.0)
    expected = np.exp([1.0, -4.0, 1.0])
    assert np.allclose(out, expected / expected.sum(), atol=1e-7)


def test_presence_and_frequency_look_at_the_output_only() -> None:
    out = distribution([1.0, 1.0, 1.0], [0, 1, 1], 1, temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    expected = np.exp([1.0, 0.0, 1.0])
    assert np.allclose(out, expected / expected.sum(), atol=1e-7)


def test_bias_and_processors_apply_to_greedy_too_and_leave_the_logits_alone() -> None:
    logits = np.array([3.0, 2.0, 1.0], dtype=np.float32)
    made = Sampling(logit_bias={0: -2.0}, processors=(lambda x, c: x - 5 * (np.arange(3) == 1),))
    assert made.distribution(logits, np.array([0]), 0).ids == [0]
    assert Sampling(logit_bias={0: -3.0}).distribution(logits, np.array([0]), 0).ids == [1]
    assert logits.tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
    ],
)
def test_impossible_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(OptionError, match="logit_bias names token 9"):
        distribution([1, 2], logit_bias={9: 1.0})


def test_no_token_left_and_broken_logits_are_told_apart() -> None:
    with pytest.raises(OptionError, match="left no token"):
        distribution([1, 2], processors=(lambda x, c: np.full_like(x, -np.inf),))
    with pytest.raises(EngineError, match="not numbers"):
        distribution([1, float("nan")], temperature=1.0)
    with pytest.raises(EngineError, match="not numbers"):
        distribution([1, float("nan")])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda x: sum(x) > 0.01),
    st.floats(0, 1, exclude_max=True),
)
def test_pick_is_the_inverse_of_the_cumulative_distribution(weights: list[float], u: float) -> None:
    probs = np.array(weights) / sum(weights)
    token = Distribution(probs).pick(u)
    below = probs[:token].sum()
    assert probs[token] > 0
    assert below - 1e-9 <= u <= below + probs[token] + 1e-9
    ids = np.flatnonzero(probs)
    assert Distribution(probs[ids], ids).pick(u) == token or abs(u - below) < 1e-9


@settings(max_examples=200)
@given(st.data())
def test_residual_is_the_same_in_every_form(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    draw = st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any)
    p, q = (np.array(data.draw(draw), dtype=float) for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    left = np.maximum(p - q, 0)
    forms = [
        residual(a, b)
        for a in (Distribution(p), Distribution(p[p > 0], np.flatnonzero(p)))
        for b in (Distribution(q), Distribution(q[q > 0], np.flatnonzero(q)))
    ]
    if left.sum() == 0:
        assert forms == [None] * 4
    else:
        assert all(f is not None and np.allclose(f.dense(n), left / left.sum()) for f in forms)


def test_without_is_the_distribution_of_the_next_sibling() -> None:
    probs = np.array([0.2, 0.5, 0.3])
    assert np.allclose(Distribution(probs).without(1).probs, [0.4, 0, 0.6])
    assert np.allclose(Distribution(probs, np.array([4, 7, 9])).without(7).dense(10)[[4, 7, 9]], [0.4, 0, 0.6])


TINY = (5e-324, 1e-310, 1e-40, Fraction(1, 10**400))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", TINY)
def test_a_temperature_of_almost_nothing_is_greedy(temperature: float) -> None:
    logits = [1.0, 3.0, -np.inf, 2.9999998, -1e38]
    assert distribution(logits, temperature=temperature).tolist() == [0, 1, 0, 0, 0]
    assert distribution(logits, temperature=temperature, top_p=0.5, min_p=0.5).tolist() == [0, 1, 0, 0, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e308},
        {"top_p": 5e-324},
        {"top_p": 1 - 2**-53},
        {"min_p": 5e-324},
        {"min_p": 1.0},
        {"repetition_penalty": 1e-6},
        {"repetition_penalty": 1e6},
        {"presence_penalty": 5e-324, "frequency_penalty": -5e-324},
        {"presence_penalty": 1e6, "frequency_penalty": 1e6},
        {"presence_penalty": -1e6, "frequency_penalty": -1e6},
        {"logit_bias": {0: 1e6, 1: -1e6, 2: -np.inf}},
        {"logit_bias": {0: 5e-324}},
    ],
    ids=str,
)
def test_extreme_settings_give_a_distribution(settings: dict[str, object]) -> None:
    for temperature in (*TINY[:-1], 1.0, 1e308):
        for logits in ([1.0, 3.0, 2.0, -4.0], [0.0] * 4, [-1e30, 0.0, 1e30, 5e-45]):
            context = [0, 1, 1, 2] * 50
            probs = distribution(logits, context, 2, **{"temperature": temperature, **settings})
            assert np.isfinite(probs).all() and abs(probs.sum() - 1) < 1e-9 and (probs >= 0).all()


def test_what_is_absent_is_none_and_one_processor_is_one() -> None:
    assert Sampling(logit_bias=None, processors=None) == Sampling()  # type: ignore[arg-type]
    keep = Sampling(processors=lambda x, c: x)  # type: ignore[arg-type]
    assert len(keep.processors) == 1 and keep == Sampling(processors=[keep.processors[0]])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="logit_bias is"):
        Sampling(logit_bias=[(1, 2.0)])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="a logits processor is 3"):
        Sampling(processors=(3,))  # type: ignore[arg-type]
