"""A length policy of your own: short drafts, and only where they promise a clear gain.

Whatever a policy answers, the tokens stay the same: it decides about time, never about text.

python examples/length_policy.py [MODEL]
"""

import sys
from dataclasses import dataclass

import pilotfish
from pilotfish.proposers import Forecast

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
PROMPT = "Repeat this line three times: the quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, slots=True)
class Cautious:
    """At most `longest` tokens, where tokens per second rise by the factor `gain` at least."""

    longest: int = 4
    gain: float = 1.2
    plain_every: int | None = None  # rounds with drafts after which one goes without

    def choose(self, forecast: Forecast) -> int:
        rates = forecast.rates[: self.longest + 1]  # tokens per second with 0, 1, 2, ... drafts
        best = int(rates.argmax())
        return best if rates[best] > self.gain * rates[0] else 0

    def value(self, forecast: Forecast, k: int) -> float:
        return float(forecast.rates[k])

    def observe(self, n_tokens: int, seconds: float) -> None:
        """Nothing to learn."""


with pilotfish.load(MODEL, speculate=Cautious()) as model, model.sibling(policy=None) as plain:
    ours, theirs = model.generate(PROMPT, max_new_tokens=80), plain.generate(PROMPT, max_new_tokens=80)
    print(ours.text)
    print(f"[{ours.stats.accepted} of {ours.stats.drafted} drafts accepted in {ours.stats.n_rounds} rounds]")
    print(f"[the same tokens as plain decoding: {ours.token_ids == theirs.token_ids}]")
