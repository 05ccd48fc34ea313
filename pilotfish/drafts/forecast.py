"""What drafts are expected to bring: from tokens known to be agreed on and times measured here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.errors import OptionError
from ..runtime.interfaces import Session, Tokens, Weights
from ..runtime.model.model import Model
from ..runtime.profiling.cost_curve import CostCurve
from ..runtime.profiling.row_classes import RowRule
from ..runtime.speculation.proposers import Suffix

LONGEST = 15  # draft lengths that are compared
_CONTEXT = 256  # entries before a step that is timed
_WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
_LEAST_PASSES, _MOST_PASSES, _TIMING_S = 7, 50, 5.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What a round takes here: `target` and `draft` by rows of a step, `rows` those the target may have."""

    target: CostCurve
    draft: CostCurve
    rows: RowRule

    def plain_s(self) -> float:
        """Seconds of a round without drafts."""
        return self.target.seconds(self.rows.minimum)

    def round_s(self, k: int, caught_up: bool = True) -> float:
        """Seconds of a round with k drafts. caught_up: False after a round whose drafts were all accepted, the last
        of which the draft model has not read yet."""
        first = self.draft.seconds(1 if caught_up else 2)
        return first + (k - 1) * self.draft.seconds(1) + self.target.seconds(self.rows.fit(k + 1))


@dataclass(frozen=True, slots=True)
class Forecast:
    """The best fixed draft length for a text. speed_up: over rounds without drafts; k = 0 is never considered."""

    k: int
    acceptance: float  # share of drafted tokens that are accepted
    tokens_per_round: float
    speed_up: float


def costs_of(model: Model) -> Costs:
    """What steps of target and draft take, measured in turns: what was remembered is of another moment each."""
    assert model.draft is not None
    return _time_steps(model, model.target, model.draft.weights)


def target_costs(model: Model) -> Costs:
    """The same for a draft that costs what the target costs."""
    return _time_steps(model, model.target, model.target)


def _time_steps(model: Model, target: Weights, draft: Weights) -> Costs:
    """The best of several: other programs only ever add to it."""
    rows = model.calibration.rows.rule() if model.exact else model.calibration.rows.free()
    widths = {"target": sorted({rows.minimum, *(rows.fit(k) for k in _WIDTHS if k <= rows.maximum)}), "draft": [1, 2]}
    n = min(_CONTEXT, target.info.context_length // 2, draft.info.context_length // 2)
    sessions = {name: weights.session(2 * n) for name, weights in (("target", target), ("draft", draft))}
    times: dict[tuple[str, int], list[float]] = {(name, w): [] for name in widths for w in widths[name]}
    try:
        for session in sessions.values():
            session.forward(_some_tokens(n, session), n_logits=0)
        began = time.perf_counter()
        for done in range(_MOST_PASSES):
            if done >= _LEAST_PASSES and time.perf_counter() - began > _TIMING_S:
                break
            for (name, width), seconds in times.items():
                seconds.append(_second_step_s(sessions[name], width, n))
    finally:
        for session in sessions.values():
            session.close()

    def curve(name: str) -> CostCurve:
        return CostCurve(np.array(widths[name]), np.array([min(times[name, w]) for w in widths[name]]))

    return Costs(curve("target"), curve("draft"), rows)


def _second_step_s(session: Session, width: int, n_entries: int) -> float:
    """Seconds of a step that follows one of the same width."""
    tokens, seconds = _some_tokens(width, session), 0.0
    for _ in range(2):
        began = time.perf_counter()
        session.forward(tokens, n_logits=width)
        seconds = time.perf_counter() - began
        session.truncate(n_entries)
    return seconds


def _some_tokens(n: int, session: Session) -> Tokens:
    return (np.arange(n, dtype=np.int64) * 37 + 11) % session.info.vocab_size


def best_length(agree: Sequence[npt.NDArray[np.bool_]], costs: Costs) -> Forecast:
    """The draft length, from 1 on, that is fastest where these tokens of answers are agreed on."""
    n = sum(len(a) for a in agree)
    best: Forecast | None = None
    for k in range(1, min(LONGEST, costs.rows.maximum - 1) + 1):
        seconds, rounds, accepted = 0.0, 0, 0
        for a in agree:
            for taken, caught_up in rounds_of(a, k):
                seconds += costs.round_s(k, caught_up)
                rounds, accepted = rounds + 1, accepted + taken
        speed_up = n * costs.plain_s() / seconds
        if best is None or speed_up > best.speed_up:
            best = Forecast(k, accepted / (rounds * k), n / rounds, speed_up)
    if best is None:
        raise OptionError("this engine has no step wide enough to verify a draft.")
    return best


def expected_speed_up(agreement: float, cost: float, costs: Costs) -> float:
    """The same where every token is agreed on with one chance (Leviathan et al. 2023), by a draft whose token takes
    `cost` times what that of `costs` does."""
    best = 0.0
    for k in range(1, min(LONGEST, costs.rows.maximum - 1) + 1):
        tokens = sum(agreement**i for i in range(k + 1))
        seconds = k * cost * costs.draft.seconds(1) + costs.target.seconds(costs.rows.fit(k + 1))
        best = max(best, tokens * costs.plain_s() / seconds)
    return best


def rounds_of(agree: npt.NDArray[np.bool_], k: int) -> list[tuple[int, bool]]:
    """(tokens accepted, whether the draft has read all before the round's last token) of every round of k drafts."""
    rounds, at, caught_up = [], 0, True
    while at < len(agree):
        wrong = np.flatnonzero(~agree[at : at + k])
        taken = int(wrong[0]) if len(wrong) else min(k, len(agree) - at)
        rounds.append((taken, caught_up))
        at, caught_up = at + taken + 1, taken < k
    return rounds


def lookup_speed_up(answers: Sequence[tuple[Tokens, int]], costs: Costs) -> float:
    """Expected speed-up of looking the text's end up in itself, at the best fixed length."""
    best, n = 0.0, sum(len(tokens) - n_prompt for tokens, n_prompt in answers)
    for k in (1, 2, 4, 8, 15):
        if k < costs.rows.maximum:
            seconds = sum(_lookup_s(tokens, n_prompt, k, costs) for tokens, n_prompt in answers)
            best = max(best, n * costs.plain_s() / seconds)
    return best


def _lookup_s(tokens: Tokens, n_prompt: int, k: int, costs: Costs) -> float:
    seconds, at, suffix = 0.0, n_prompt, Suffix()
    while at < len(tokens):
        drafted = suffix.propose(tokens[:at], _Allowance(k)).tokens
        n = min(len(drafted), len(tokens) - at)
        wrong = np.flatnonzero(drafted[:n] != tokens[at : at + n])
        at += (int(wrong[0]) if len(wrong) else n) + 1
        seconds += costs.target.seconds(costs.rows.fit(len(drafted) + 1))
    return seconds


@dataclass(frozen=True, slots=True)
class _Allowance:
    max_tokens: int

    def more(self, n_drafted: int, confidence: float) -> bool:
        return True
