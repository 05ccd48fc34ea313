"""What is known about one proposer: whether it is worth asking, and when it is asked again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..interfaces import Forecast
from .acceptance_rate import Acceptance

_STALL = 0.2  # of a plain step: a call counts as so much longer than twice its usual time, and no more
_HOPE = 4.0  # plain steps that asking a proposer is taken to be worth before it was asked,
_WORTH_RATE = 0.1  # and how fast the truth is followed,
_GAIN_RATE = 0.5  # and how fast where it is better than was thought
_CONSIDERABLE = 0.05  # plain steps: where asking takes more, every answer has to show that it is worth it
_LONG_THOUGHT = 0.02  # of a plain step: thinking longer than that about a proposer that is not asked is no small matter
_REST_SHARE = 0.005  # of the time: what asking one that brings less than it takes may cost,
_REST = (3, 63)  # so it rests so many rounds at a time, at the least and at the most, having begun with two


@dataclass(slots=True)
class ProposerRecord:
    """What is known about one proposer: how long a token takes, and how far its confidence can be trusted."""

    call_s: float  # a whole call
    token_s: float  # a drafted token
    cheap: float  # plain steps: one whose whole call takes less is asked first and judged by its draft
    acceptance: Acceptance
    idle: int = 0  # rounds since it was last asked for a draft
    probes: int = 0  # drafts in a row that were not expected to pay
    worth_s: float = math.inf  # what asking it is expected to save, on average,
    asked_s: float = 0.0  # and takes, with all that is thought about the answer
    rest: int = 0  # rounds it rested the last time,
    rests_until: int = 0  # and the round in which that ends
    paid: bool = False  # whether a draft of it was worth asking for in this answer

    def expensive(self, plain_s: float) -> bool:
        """Whether it is judged by its record, before any time is spent on it."""
        return self.call_s > self.cheap * plain_s

    def back_off(self, round_: int, plain_s: float) -> None:
        """Leave it out for a while if it brings less than asking takes: a lookup in every round is not free either.

        Each rest is three times as long as the one before, so an answer in which nothing can be drafted asks few times.
        """
        if self.worth_s < self.asked_s:
            longest = min(max(int(self.asked_s / (_REST_SHARE * plain_s)), _REST[0]), _REST[1])
            self.rest = min(3 * self.rest + 2, longest)
            self.rests_until = round_ + 1 + self.rest
            self.idle += self.rest

    def passed_over(self, seconds: float, round_: int, plain_s: float) -> None:
        """It took so long to find that it should not be asked; where steps are short, too long for every round."""
        self.idle += 1
        if seconds > _LONG_THOUGHT * plain_s:
            self.observe_asking(0.0, seconds, plain_s)
            self.back_off(round_, plain_s)

    def begin(self, plain_s: float) -> None:
        """A new answer. Where asking takes a good part of a step it has to show again what it is worth, and unless it
        was worth that in the last answer the first two rounds are left out, which tell a lookup next to nothing."""
        self.rest = self.rests_until = 0
        if self.asked_s > _CONSIDERABLE * plain_s and not self.expensive(plain_s):
            self.worth_s = 0.0
            if not self.paid:
                self.rest, self.rests_until = 1, 2
        self.paid = False

    def observe_asking(self, promised_s: float, seconds: float, plain_s: float) -> None:
        """It was asked, and its draft promises to save so much against plain decoding. What is promised can only
        disappoint; what it is worth is seen when it was verified."""
        self.worth_s = min(self.worth_s, _HOPE * plain_s)
        self.worth_s -= _WORTH_RATE * max(self.worth_s - promised_s, 0.0)
        self.asked_s += _WORTH_RATE * (min(seconds, 2.0 * self.asked_s + _STALL * plain_s) - self.asked_s)

    def observe_saved(self, saved_s: float) -> None:
        """Its draft was verified, and the round took so much less than plain decoding. A gain is followed faster than a
        disappointment: a text that can be copied at last is too short to be looked at once in a while."""
        rate = _GAIN_RATE if saved_s > self.worth_s else _WORTH_RATE
        self.worth_s += rate * (saved_s - self.worth_s)
        if saved_s > self.asked_s:
            self.rest, self.paid = 0, True

    def asked(self, forecast: Forecast, k: int) -> None:
        """k tokens of its draft are verified this round."""
        if k == 0:
            self.idle += 1
            return
        self.idle = 0
        pays = (1.0 + forecast.accepted[k]) * forecast.seconds[0] > forecast.seconds[k]
        self.probes = 0 if pays else self.probes + 1

    def usual(self, seconds: float, plain_s: float) -> float:
        """So much of a call's time as can be its own: a first call, or another program's turn, proves little."""
        return min(seconds, 2.0 * self.call_s + _STALL * plain_s)

    def observe_time(self, n_tokens: int, seconds: float, plain_s: float) -> None:
        if not n_tokens and seconds < self.call_s:
            return  # what is refused at once says nothing of what a draft would take
        seconds = self.usual(seconds, plain_s)
        self.call_s += 0.1 * (seconds - self.call_s)
        self.token_s += 0.1 * (seconds / max(n_tokens, 1) - self.token_s)
