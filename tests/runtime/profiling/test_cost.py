from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.runtime.interfaces import Draft, ModelInfo, Step, Tokens
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.runtime.profiling.cost_curve import CostCurve, facts_key, slower_than_wider
from pilotfish.runtime.profiling.row_classes import RowRule, classify
from pilotfish.runtime.speculation.acceptance_rate import Acceptance, conditional, path_chances
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import RenewalReward
from pilotfish.testing.toy import ToySession, ToyWeights

WIDTHS = np.array([1, 2, 4, 8, 16])
BASE = np.array([10e-3, 11e-3, 9e-3, 20e-3, 40e-3])  # with a dip at 4


def test_widths_between_are_interpolated_and_wider_ones_extrapolated() -> None:
    curve = CostCurve(WIDTHS, BASE)
    assert [curve.seconds(w) for w in (1, 2, 4, 16)] == pytest.approx([10e-3, 11e-3, 9e-3, 40e-3])
    assert curve.seconds(3) == pytest.approx(10e-3)
    assert curve.seconds(31) == pytest.approx(40e-3 + 15 * 2e-3)


def test_a_slower_machine_moves_every_width_alike() -> None:
    curve = CostCurve(WIDTHS, BASE)
    for _ in range(50):
        for width, base in zip(WIDTHS, BASE, strict=True):
            curve.observe(int(width), 100, 3.0 * base)
    assert curve.seconds_of(WIDTHS) == pytest.approx(3.0 * BASE, rel=0.1)
    assert curve.to_facts() == CostCurve(WIDTHS, BASE).to_facts(), "what a busy hour has taught is not kept"


def test_one_wrong_width_is_found_and_the_others_stay() -> None:
    curve = CostCurve(WIDTHS, BASE)
    truth = BASE.copy()
    truth[3] *= 2.5
    for _ in range(150):
        for width, seconds in zip(WIDTHS, truth, strict=True):
            curve.observe(int(width), 100, seconds)
    assert curve.seconds_of(WIDTHS) == pytest.approx(truth, rel=0.2)


def test_a_width_nobody_runs_does_not_drift_away() -> None:
    """Found on a real machine: noise on its neighbours had moved width 1 by a factor of 10^12."""
    curve = CostCurve(WIDTHS, BASE)
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        width = int(rng.choice([2, 4, 8]))
        seconds = BASE[list(WIDTHS).index(width)] * rng.lognormal(0.0, 0.3)
        curve.observe(width, 100, float(seconds))
    assert 0.5 < curve.seconds(1) / BASE[0] < 2.0
    assert 0.5 < curve.seconds(16) / BASE[4] < 2.0


def test_slow_steps_now_and_then_leave_the_shape_of_the_curve() -> None:
    """Found on a real machine: every tenth step stalls, and in the end 16 rows looked no dearer than one."""
    curve = CostCurve(WIDTHS, BASE)
    rng = np.random.default_rng(0)
    for _ in range(5_000):
        curve.observe(1, 100, float(BASE[0] * (3.0 if rng.random() < 0.1 else rng.lognormal(0.0, 0.02))))
    assert curve.seconds(16) / curve.seconds(1) == pytest.approx(4.0, rel=0.15)


def test_one_hiccup_moves_little() -> None:
    curve = CostCurve(WIDTHS, BASE)
    curve.observe(2, 100, 5.0)
    assert curve.seconds(2) < 1.2 * BASE[1]


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 8, 40]), st.floats(1e-6, 1e3)), max_size=200))
def test_whatever_is_observed_every_cost_stays_a_positive_number(steps: list[tuple[int, float]]) -> None:
    curve = CostCurve(WIDTHS, BASE)
    for width, seconds in steps:
        curve.observe(width, 10, seconds)
    costs = curve.seconds_of(range(1, 50))
    assert min(costs) > 0 and np.isfinite(costs).all()


def test_a_step_behind_many_entries_costs_what_its_rows_see() -> None:
    base, entry_s = {1: 10e-3, 16: 40e-3}, 3e-6
    curve = CostCurve(np.array([1, 2, 16]), np.array([10e-3, 11e-3, 40e-3]), entry_s=entry_s)
    for n_entries in [*range(100, 900)] * 2:  # two answers
        width = 16 if n_entries % 3 == 0 else 1
        curve.observe(width, n_entries, base[width] + entry_s * width * n_entries)
    for curve.n_entries in (100, 600, 1000):  # the next answer's context is another, and its costs are known
        for width in (1, 16):
            truth = base[width] + entry_s * width * curve.n_entries
            assert curve.seconds(width) == pytest.approx(truth, rel=0.02)
            assert curve.seconds_of([width])[0] == pytest.approx(curve.seconds(width))


def test_calibration_finds_what_an_entry_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pilotfish.runtime.profiling.calibrate.time.perf_counter", lambda: now[0])
    session = ToyWeights(vocab_size=11, context_length=256).session()
    forward = session.forward

    def slow(tokens: Tokens, **options: Any) -> Step:
        now[0] += 5e-3 + len(tokens) * (1e-3 + 2e-6 * len(session.positions))
        return forward(tokens, **options)

    monkeypatch.setattr(session, "forward", slow)
    assert calibrate(session).curve.entry_s == pytest.approx(2e-6, rel=1e-3)
    assert len(session.positions) == 0
    small = ToyWeights(vocab_size=11, context_length=64).session()
    assert calibrate(small).curve.entry_s == 0.0  # no room to tell


class Timed:
    """A toy's session on a clock of its own: a step takes seconds(rows, number of steps before it)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int, int], float]) -> None:
        self.now = 0.0
        self.steps: list[int] = []
        self.session = ToyWeights(vocab_size=11, context_length=256).session()
        forward = self.session.forward

        def timed(tokens: Tokens, **options: Any) -> Step:
            self.now += seconds(len(tokens), len(self.steps))
            self.steps.append(len(tokens))
            return forward(tokens, **options)

        monkeypatch.setattr(self.session, "forward", timed)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize("begins", range(0, 90, 10))
def test_a_spell_of_other_programs_does_not_reach_the_curve(begins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie over all steps of one width that were run in a row: the widths are timed in turns, too."""

    def seconds(rows: int, step: int) -> float:
        return (5e-3 + 1e-3 * rows) * (3.0 if begins <= step < begins + 20 else 1.0)

    found = calibrate(Timed(monkeypatch, seconds).session).curve.measured
    assert found == pytest.approx({rows: 5e-3 + 1e-3 * rows for rows in found})


def test_a_width_that_looks_dearer_than_a_wider_one_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """T(1) = 89.6 ms and T(2) = 55.0 ms were once kept as a machine's own."""
    always = Timed(monkeypatch, lambda rows, step: 89.6e-3 if rows == 1 else 55e-3)
    assert slower_than_wider(calibrate(always.session).curve.measured) == [1]
    assert always.steps.count(1) < 24, "what stays is measured briefly all the same"
    usual = Timed(monkeypatch, lambda rows, step: 55e-3)
    calibrate(usual.session)
    for_a_while = Timed(
        monkeypatch, lambda rows, step: 89.6e-3 if rows == 1 and step < len(usual.steps) - 14 else 55e-3
    )
    assert calibrate(for_a_while.session).curve.measured[1] == pytest.approx(55e-3)


def test_dips_that_kernels_have_are_no_reason_for_doubt() -> None:
    assert slower_than_wider({1: 60.0, 2: 80.0, 3: 125.0, 4: 102.0, 8: 200.0}) == []
    assert slower_than_wider({1: 10.0, 2: 10.0, 4: 10.0}) == [] and slower_than_wider({1: 1.0}) == []
    assert slower_than_wider({1: 50.0, 2: 55.0, 3: 90.0, 4: 60.0, 8: 40.0}) == [3, 4]


def test_facts_survive_json_and_damaged_ones_are_refused() -> None:
    curve = CostCurve(WIDTHS, BASE)
    curve.observe(2, 100, 12e-3)
    facts = json.loads(json.dumps(curve.to_facts()))
    again = CostCurve.from_facts(facts)
    again.n_entries = curve.n_entries
    assert again.seconds_of(WIDTHS) == pytest.approx(BASE)
    for damage in (
        {"widths": []},
        {"widths": [1, 1, 2, 3, 4]},
        {"measured": [1.0]},
        {"measured": [0.0] * 5},
        {"measured": [float("nan")] * 5},
        {"measured": [1e12] * 5},
        {"widths": "x"},
        {"entry_s": [-1.0]},
        {"entry_s": []},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            CostCurve.from_facts({**facts, **damage})


def test_calibration_finds_the_classes_and_leaves_the_session_empty() -> None:
    session = ToyWeights(vocab_size=11, context_length=128, row_noise=1.0).session()
    found = calibrate(session)
    assert found.rows.classes[0] == (1,)
    assert len(found.rows.classes) == 2
    assert found.rows.rule().minimum == 2
    assert found.price_of_exactness > 0
    assert len(session.positions) == 0
    assert len(calibrate(ToyWeights(vocab_size=11, context_length=128).session()).rows.classes) == 1


class Mixing(ToySession):
    """A row's logits depend on the last row of its step, as where all rows are rounded by one scale."""

    def forward(self, tokens: Tokens, **options: Any) -> Step:
        step = super().forward(tokens, **options)
        return Step(step.logits + np.float32(1e-3) * np.float32(tokens[-1]))


class Shifting(ToySession):
    """A row's logits depend on how many entries its step ends with, whatever it sees of them."""

    def forward(self, tokens: Tokens, **options: Any) -> Step:
        step = super().forward(tokens, **options)
        return Step(step.logits + np.float32(1e-3) * np.float32(len(self.entries)))


@pytest.mark.parametrize("kind", [Mixing, Shifting])
def test_where_rows_of_a_step_change_each_other_only_single_rows_are_alike(kind: type[ToySession]) -> None:
    session = kind(ToyWeights(vocab_size=11, context_length=128), 128)
    found = calibrate(session)
    assert found.rows.classes == ((1,),) and not found.rows.drafts
    assert (found.rows.rule().widths, found.rows.free().maximum) == ((1,), 33)
    assert len(session.positions) == 0
    assert calibrate(ToyWeights(vocab_size=11, context_length=128).session()).rows.drafts


def test_calibration_of_a_small_context_uses_the_widths_that_fit() -> None:
    found = calibrate(ToyWeights(vocab_size=11, context_length=20).session())
    assert max(w for c in found.rows.classes for w in c) <= 12


def test_everything_that_changes_costs_changes_the_key() -> None:
    info = ModelInfo("llama", 9, 9, 1, 1, 1, 1, 1, "onnx", "1.0", "cpu", 2, "abc", "int8")
    keys = {facts_key(info)}
    changes = [{"engine": "x"}, {"engine_version": "2"}, {"device": "gpu:0"}, {"digest": "d"}, {"settings": "f32"}]
    for change in (*changes, {"threads": 1}):
        fields = {name: getattr(info, name) for name in ModelInfo.__dataclass_fields__} | change
        keys.add(facts_key(ModelInfo(**fields)))
    assert len(keys) == 7
    assert all(math.prod(c.isalnum() or c in "._-" for c in key) for key in keys)


# -- acceptance ----------------------------------------------------------------------------------------------------


def chain(*expected: float) -> Draft:
    return Draft(np.zeros(len(expected), dtype=np.int64), expected=np.array(expected))


def test_conditional_and_path_chances_are_inverses() -> None:
    draft = chain(0.8, 0.4, 0.1)
    assert conditional(draft) == pytest.approx([0.8, 0.5, 0.25])
    assert path_chances(draft, conditional(draft)) == pytest.approx(draft.expected)
    tree = Draft(np.zeros(3, dtype=np.int64), np.array([0, 0, 1]), expected=np.array([0.6, 0.3, 0.3]))
    assert conditional(tree) == pytest.approx([0.6, 0.3, 0.5])
    assert path_chances(tree, conditional(tree)) == pytest.approx(tree.expected)


def test_the_rejected_tail_is_not_counted() -> None:
    """Censoring: tokens behind a rejection were never judged, so they must not pull the estimate down."""
    record = Acceptance()
    rng = np.random.default_rng(0)
    draft = chain(*0.75 ** np.arange(1, 11))
    for _ in range(2000):
        misses = np.flatnonzero(rng.random(10) >= 0.75)
        n = int(misses[0]) if len(misses) else 10
        record.observe(draft, tuple(range(1, n + 1)))
    assert record.calibrate([0.75])[0] == pytest.approx(0.75, abs=0.08)


def test_wrong_confidence_is_corrected_and_changes_are_followed() -> None:
    record = Acceptance()
    draft = chain(0.9)
    for _ in range(200):
        record.observe(draft, ())
    assert record.calibrate([0.9])[0] < 0.1
    for _ in range(200):
        record.observe(draft, (1,))
    assert record.calibrate([0.9])[0] > 0.9


def test_siblings_of_an_accepted_child_were_judged_and_cousins_were_not() -> None:
    tree = Draft(np.array([5, 6, 7, 8]), np.array([0, 0, 1, 2]), expected=np.array([0.65, 0.25, 0.6, 0.2]))
    record = Acceptance()
    for _ in range(100):
        record.observe(tree, (1,))  # token 5 accepted, its child 7 rejected; 8, below 6, never reached
    accepted, refused, rejected, unjudged = record.calibrate([0.65, 0.25, 0.93, 0.82])
    assert accepted > 0.9 and refused < 0.1 and rejected < 0.15
    assert abs(unjudged - 0.82) < 0.15  # its own record is empty; a little is learned from the others'


def test_a_proposer_that_states_nothing_is_known_by_its_record() -> None:
    record = Acceptance()
    draft = Draft(np.zeros(3, dtype=np.int64))
    for _ in range(100):
        record.observe(draft, (1,))  # the first is always right, the second never, the third is not judged
    first, second, third = record.typical(3)
    assert first > 0.95 and second < 0.05 and third == pytest.approx(0.7)


def test_a_change_of_width_is_learned_apart_from_the_widths() -> None:
    curve = CostCurve(np.array([1, 2, 8]), np.array([10e-3, 11e-3, 20e-3]), switch=3e-3)
    for _ in range(200):  # every step follows one of another width, and that costs 7 ms
        curve.observe(2, 100, 18e-3)
        curve.observe(8, 100, 27e-3)
    assert abs(curve.switch * curve.speed - 7e-3) < 2e-3
    assert abs(curve.seconds(2) - 11e-3) < 2e-3 and abs(curve.seconds(8) - 20e-3) < 3e-3
    assert CostCurve.from_facts(curve.to_facts()).switch == curve.switch
    with pytest.raises((KeyError, ValueError)):
        CostCurve.from_facts({"widths": [1.0], "measured": [1e-3], "switch": [-1.0]})


def test_a_width_that_always_follows_another_is_learned() -> None:
    """Rare drafts among plain steps, on an engine whose steps take longer after a change of width."""
    curve = CostCurve(np.array([1, 2, 8]), np.array([10e-3, 11e-3, 5e-3]), switch=3e-3)
    for _ in range(30):
        curve.observe(8, 100, 43e-3)
        for after in range(20):
            curve.observe(2, 100, 14e-3 if after == 0 else 11e-3)
    assert curve.seconds(8) == pytest.approx(40e-3, rel=0.1)
    assert curve.switch * curve.speed == pytest.approx(3e-3, rel=0.2)


def test_drafts_pay_for_the_changes_of_width_that_they_bring() -> None:
    curve = CostCurve(np.array([1, 2, 8]), np.array([10e-3, 11e-3, 20e-3]), switch=7e-3)
    drafting = Drafting(RenewalReward(), curve, RowRule(tuple(range(2, 9))))
    chances = np.full(4, 0.5)

    def extra() -> list[float]:
        seconds = drafting.forecast(chances, chances, 0.0).seconds
        return [round(1e3 * float(s - curve.seconds(max(k + 1, 2))), 3) for k, s in enumerate(seconds)]

    assert extra() == [0.0, 0.0, 14.0, 14.0, 14.0]  # two rows are the plain step; more are a way there and back
    for width in (5, 5) * 40:
        drafting._count_switches(width)
    assert max(extra()) < 0.1  # one draft after another changes nothing
    for width in (2, 5) * 80:
        drafting._count_switches(width)
    assert abs(max(extra()) - 14.0) < 0.1


def test_a_proposer_that_is_too_sure_is_found_out_at_once() -> None:
    """What one confidence shows is learned for all of them: a handful of tokens is enough."""
    record = Acceptance()
    for stated in (0.5, 0.75, 0.85, 0.9, 0.6, 0.8):
        record.observe(chain(stated), ())
    unseen = record.calibrate([0.965])[0]
    assert unseen < 0.9
    for _ in range(30):
        for stated in (0.5, 0.75, 0.85, 0.9):
            record.observe(chain(stated), (1,))
    assert record.calibrate([0.65])[0] > 0.65
    assert 0.0 < record.calibrate([1.0])[0] <= 1.0 and record.calibrate([0.0])[0] < 0.1


def test_a_width_that_only_looks_alike_is_a_class_of_its_own() -> None:
    alike = dict.fromkeys((1, 2, 3, 8), np.zeros((8, 4), np.float32))
    assert classify(alike).classes == ((1, 2, 3, 8),)
    assert classify(alike, (), 2).classes == ((1,), (2, 3, 8))
