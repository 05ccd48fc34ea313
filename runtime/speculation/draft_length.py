"""How many tokens to draft. Every policy sees the same forecast; 0 is always a choice."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import real, whole
from ..interfaces import Forecast

_RATE_STEP = 0.1  # weight of the newest round in the running rate
_MARGIN = 1.02  # drafting must promise this much more than not drafting: estimates are noisy
_FIRST_PROBE = 32  # rounds without drafts before one is tried again
_LAST_PROBE = 512


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always k tokens, or as many as the proposer has."""

    k: int
    plain_every: int | None = None

    def __post_init__(self) -> None:
        whole("a fixed draft length", self.k, 0)

    def choose(self, forecast: Forecast) -> int:
        return min(self.k, len(forecast.accepted) - 1)

    def value(self, forecast: Forecast, k: int) -> float:
        return float(forecast.rates[k])

    def observe(self, n_tokens: int, seconds: float) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """Tokens up to and including the first whose confidence is below the threshold (as transformers does)."""

    threshold: float = 0.4
    plain_every: int | None = None

    def __post_init__(self) -> None:
        real("a confidence threshold", self.threshold, "from 0 to 1", lambda x: 0 <= x <= 1)

    def choose(self, forecast: Forecast) -> int:
        last = len(forecast.confidence) - 1
        return next((k for k in range(1, last) if forecast.confidence[k] < self.threshold), last)

    def value(self, forecast: Forecast, k: int) -> float:
        return float(forecast.rates[k])

    def observe(self, n_tokens: int, seconds: float) -> None:
        """Nothing to learn."""


class RenewalReward:
    """The k that makes most of this machine's time: argmax of (1 + A_k) - rate * seconds_k over the measured curve.

    `rate` is the running number of tokens per second, the price of a second (Dinkelbach's form of maximising tokens
    over time). All k are compared, as the curve has dips and steps. k = 0 wins unless drafting promises clearly more
    tokens per second than a plain step, and unless the loss, were every draft wrong, is within what this answer has
    gained so far and a little more (Forecast.stake): so no answer takes much longer than without drafts, however wrong
    the estimates are, and the steeper the curve, the shorter the first drafts. While it keeps winning, a draft is
    tried every so often, ever more rarely; while drafting wins, a plain step is run every so often, because a
    comparison needs both sides measured.
    """

    plain_every: int | None = 64

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0  # moving sums; their ratio is the rate

    def choose(self, forecast: Forecast) -> int:
        plain_s, rate = forecast.seconds[0], self._rate(forecast)
        affordable = plain_s + forecast.stake  # even if every draft is wrong
        accepted, seconds, least = forecast.accepted, forecast.seconds, _MARGIN / plain_s

        def allowed(k: int) -> bool:
            return 1.0 + accepted[k] > least * seconds[k] and seconds[k] <= affordable

        worth = [a - rate * s for a, s in zip(accepted, seconds, strict=True)]
        best = worth.index(max(worth))
        if not allowed(best):  # mostly it is, and to ask of each k would take longer than all the rest
            best = max(filter(allowed, range(len(worth))), key=worth.__getitem__, default=0)
        if best:
            return best
        wait = min(_FIRST_PROBE << min(forecast.probes, 8), _LAST_PROBE)
        probing = forecast.idle >= wait and len(forecast.seconds) > 1
        return 1 if probing and forecast.seconds[1] <= affordable else 0

    def value(self, forecast: Forecast, k: int) -> float:
        return 1.0 + forecast.accepted[k] - self._rate(forecast) * forecast.seconds[k]

    def observe(self, n_tokens: int, seconds: float) -> None:
        self._tokens += _RATE_STEP * (n_tokens - self._tokens)
        self._seconds += _RATE_STEP * (seconds - self._seconds)

    def _rate(self, forecast: Forecast) -> float:
        """Tokens per second: the running rate, but never less than what a plain step brings."""
        running = self._tokens / self._seconds if self._seconds else 0.0
        return max(running, 1.0 / forecast.seconds[0])
