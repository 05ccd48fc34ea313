"""Chooses, round by round, who drafts and how much, by what this machine's time is worth."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from ..interfaces import EMPTY_DRAFT, Budget, Draft, DraftLengthPolicy, Forecast, Proposer, Tokens
from ..profiling.cost_curve import CostCurve
from ..profiling.row_classes import RowRule
from .acceptance_rate import Acceptance, chain_chances, conditional, path_chances
from .proposer_record import ProposerRecord
from .repeats import Repeats

_CHEAP_LOOKUP = 1.0  # plain steps: a lookup whose whole call takes less is asked first and judged by its draft,
_CHEAP_MODEL = 0.1  # and so is a model that drafts token by token
_HICCUP = 3.0  # a step counts as at most so many times longer or shorter than expected
_STAKE = 2.0  # plain steps that drafts may lose in an answer before they have gained any,
_STAKE_RATE = 0.01  # and so many more with every token
_STALE = 64  # rounds after which a proposer that lost to another is heard again


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a round will verify, and who guessed it."""

    draft: Draft
    proposer: str | None
    draft_s: float


NO_DRAFT = Proposal(EMPTY_DRAFT, None, 0.0)


@dataclass(slots=True)
class _RoundBudget:
    """The length policy's price, in the form a proposer asks for it."""

    max_tokens: int
    drafting: Drafting
    record: ProposerRecord
    _stated: list[float]

    def more(self, n_drafted: int, confidence: float) -> bool:
        self._stated.append(confidence)
        acceptance = self.record.acceptance
        chances = acceptance.calibrate(self._stated) + acceptance.typical(self.max_tokens)[n_drafted:]
        forecast = self.drafting.forecast(chain_chances(chances), chances, self.record.token_s)
        return self.drafting.policy.choose(forecast) > n_drafted


class Drafting:
    """The proposers, the length policy and what was learned about both. Lives as long as its model.

    token_s: expected seconds per drafted token of each proposer before anything was measured.
    """

    def __init__(
        self,
        policy: DraftLengthPolicy,
        costs: CostCurve,
        rows: RowRule,
        token_s: dict[str, float] | None = None,
    ) -> None:
        self.policy = policy
        self.costs = costs
        self.rows = rows
        self._token_s = token_s or {}
        self._records: dict[str, ProposerRecord] = {}
        self._minimum = rows.minimum
        self._fitted = [rows.fit(k + 1) for k in range(rows.maximum)]  # width of a step with k drafts
        self._narrow = bisect_right(self._fitted, self._minimum)  # numbers of drafts that fit the narrowest step
        self._round = 0  # of the answer, from 0
        self._rests_until = 0  # the first round in which somebody is to be asked
        self._since_plain = 0  # rounds since a step of minimal width
        self._last_width = self._minimum
        self._gained = 0.0  # seconds, since the answer began, against plain decoding
        self._answered = 0  # tokens of the answer
        self._switches = 0  # changes of width since the last drafted round,
        self._switches_per_draft = 2.0  # and that many: there and back, unless drafts follow drafts

    def begin(self, n_entries: int) -> None:
        """A new answer, to a prompt of so many entries: what was gained in the last one is no longer at stake."""
        self._gained, self._answered, self._round, self._rests_until = 0.0, 0, 0, 0
        self.costs.n_entries = n_entries
        plain_s = self.costs.seconds(self._minimum)
        for record in self._records.values():
            record.begin(plain_s)

    @property
    def rests(self) -> bool:
        """Whether nobody is to be asked in this round."""
        return self._round < self._rests_until

    def propose(
        self, proposers: tuple[Proposer, ...], context: Tokens, max_tokens: int, repeats: Repeats | None = None
    ) -> Proposal:
        """The draft of this round: the best of the cheap proposers' drafts, or a more expensive proposer's where that
        promises more, cut to the length that pays. Tokens beyond it only fill rows that the row class costs anyway.

        repeats: drafts end where the text repeats nothing, and none is sampled: to cut one by its tokens is a bias.
        """
        began = time.perf_counter()
        k_max = min(max_tokens, self.rows.maximum - 1)
        if self.policy.plain_every is not None and self._since_plain >= self.policy.plain_every:
            k_max = min(k_max, self._minimum - 1)  # an undrafted step, to know what it costs now
        if self.rests or k_max < 1 or not proposers:
            return NO_DRAFT
        best, best_value, proposed_by = EMPTY_DRAFT, -math.inf, None
        plain_s = self.costs.seconds(self._minimum)
        if len(proposers) > 1:
            proposers = tuple(sorted(proposers, key=lambda proposer: self._record(proposer.name).call_s))
        for proposer in proposers:
            record = self._record(proposer.name)
            if self._round < record.rests_until:
                continue
            k = k_max
            if record.expensive(plain_s):
                thought = time.perf_counter()
                forecast = self._forecast_record(record, k_max)
                k = self.policy.choose(forecast)
                if k == 0 or (self.policy.value(forecast, k) <= best_value and forecast.idle < _STALE):
                    record.passed_over(time.perf_counter() - thought, self._round, plain_s)
                    continue
            draft, value = self._ask(proposer, record, context, k, plain_s, repeats)
            if not len(draft):
                continue
            drawn = draft.distributions is not None
            if value > best_value or drawn:
                best, best_value, proposed_by = draft, value, proposer.name
                if drawn:  # a sampled draft must be submitted
                    break
        self._rests_until = min([self._records[proposer.name].rests_until for proposer in proposers])
        return Proposal(best, proposed_by, time.perf_counter() - began)

    def observe(
        self,
        proposal: Proposal,
        rows: tuple[int, ...],
        width: int,
        *,
        n_context: int,
        n_tokens: int,
        verify_s: float,
        began: float,
    ) -> None:
        """Learn from a finished round.

        rows: accepted rows; width: rows of the forward pass, which took verify_s; n_tokens: committed;
        began: time.perf_counter() at the beginning of the round.
        """
        seconds = time.perf_counter() - began
        if width >= self._minimum:  # a narrower step is what plain decoding takes there, too
            self._account(proposal, width, n_tokens, verify_s)
        self.costs.observe(width, n_context, verify_s)
        self.policy.observe(n_tokens, seconds)
        self._count_switches(width)
        self._since_plain = self._since_plain + 1 if width > self._minimum else 0
        if proposal.proposer is not None:
            self._record(proposal.proposer).acceptance.observe(proposal.draft, rows)
        self._round += 1

    def _account(self, proposal: Proposal, width: int, n_tokens: int, verify_s: float) -> None:
        """What the round gained or lost. A wider step counts as it went, within reason, since the curve may be wrong; a
        plain one by the curve: what it took too long is nobody's gain or loss.

        Looking something up that is not verified is no bet that was lost: it happens in every round.
        """
        spent, plain_s = self.costs.seconds(width), self.costs.seconds(self._minimum)
        if width != self._last_width:
            spent += self.costs.speed * self.costs.switch
        if width > self._minimum:
            spent = min(max(verify_s, spent / _HICCUP), spent * _HICCUP)
        if proposal.proposer is not None:
            record = self._record(proposal.proposer)
            record.observe_saved(max(n_tokens * plain_s - spent, 0.0))
            if not record.expensive(plain_s):
                record.back_off(self._round, plain_s)
            if width > self._minimum:
                spent += record.usual(proposal.draft_s, plain_s)
        self._gained += n_tokens * plain_s - spent
        self._answered += n_tokens

    def _count_switches(self, width: int) -> None:
        self._switches += width != self._last_width
        self._last_width = width
        if width > self._minimum:
            self._switches_per_draft += 0.1 * (self._switches - self._switches_per_draft)
            self._switches = 0

    def forecast(
        self, paths: list[float], chances: list[float], token_s: float, record: ProposerRecord | None = None
    ) -> Forecast:
        """What k = 0..len(paths) drafted tokens bring and cost.

        paths: chance that each token's path is accepted; chances: that of each token given its parent.
        token_s: seconds that drafting a token would still take; record: of the proposer.
        """
        n = len(paths) + 1
        accepted = list(accumulate(paths, initial=0.0))
        seconds = self.costs.seconds_of(self._fitted[:n])
        if self.costs.switch:  # without drafts there would be none
            switch_s = self.costs.speed * self.costs.switch * self._switches_per_draft
            seconds = [s if k < self._narrow else s + switch_s for k, s in enumerate(seconds)]
        if token_s:
            seconds = [s + k * token_s for k, s in enumerate(seconds)]
        idle, probes = (0, 0) if record is None else (record.idle, record.probes)
        stake = self._gained + (_STAKE + _STAKE_RATE * self._answered) * seconds[0]
        return Forecast(accepted, seconds, [1.0, *chances], idle, probes, stake)

    def _forecast_record(self, record: ProposerRecord, k: int) -> Forecast:
        chances = record.acceptance.typical(k)
        return self.forecast(chain_chances(chances), chances, record.token_s, record)

    def _cut(self, draft: Draft, record: ProposerRecord) -> tuple[Draft, float, float]:
        """The part of a draft that pays, what a round with it is worth, and the seconds it saves.

        A sampled draft is submitted whole: to drop a token because of its own probability would bias the output.
        """
        if draft.expected is None:  # a proposer that states nothing is taken at its record
            chances = record.acceptance.typical(len(draft))
        else:
            chances = record.acceptance.calibrate(conditional(draft))
        forecast = self.forecast(path_chances(draft, chances), chances, 0.0, record)  # drafting is paid for
        k = self.policy.choose(forecast) if draft.distributions is None else len(draft)
        record.asked(forecast, k)
        kept = draft.head(self.rows.fit(k + 1) - 1) if draft.distributions is None else draft
        saved = (1.0 + forecast.accepted[k]) * forecast.seconds[0] - forecast.seconds[k]
        return kept, self.policy.value(forecast, k), saved

    def _ask(
        self,
        proposer: Proposer,
        record: ProposerRecord,
        context: Tokens,
        k: int,
        plain_s: float,
        repeats: Repeats | None,
    ) -> tuple[Draft, float]:
        """The part of its draft of up to k tokens that pays, and what a round with it is worth."""
        began = time.perf_counter()
        budget: Budget = _RoundBudget(k, self, record, [])
        draft = proposer.propose(context, budget)
        if repeats is not None and len(draft):
            draft = _repeating(draft, context, repeats)
        record.observe_time(len(draft), time.perf_counter() - began, plain_s)
        kept, value, saved_s = self._cut(draft, record) if len(draft) else (EMPTY_DRAFT, -math.inf, 0.0)
        record.observe_asking(max(saved_s, 0.0), time.perf_counter() - began, plain_s)
        if not len(kept) and not record.expensive(plain_s):
            record.back_off(self._round, plain_s)
        return kept, value

    def _record(self, name: str) -> ProposerRecord:
        if name not in self._records:
            token_s = self._token_s.get(name, 0.0)
            cheap = _CHEAP_MODEL if name in self._token_s else _CHEAP_LOOKUP
            self._records[name] = ProposerRecord(token_s, token_s, cheap, Acceptance())
        return self._records[name]


def _repeating(draft: Draft, context: Tokens, repeats: Repeats) -> Draft:
    """The part of a draft in which the text goes on to repeat itself."""
    if draft.distributions is not None or draft.parents is not None:
        return EMPTY_DRAFT
    return draft.head(repeats.reach(context, draft.tokens))
