"""What a round of the decode loop is made of: drafts and who makes them, what they cost, what came of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from .distribution import Distribution, Indices, Probs, Tokens

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens guessed to follow the context. Rows number the forward pass: row 0 is the context's last token and
    row i + 1 is draft token i.

    Siblings are listed in the order they were drawn, each with the distribution it was drawn from: the same
    distribution again
    (with replacement) or the distribution without its elder siblings (without replacement). The verifier needs no more.
    """

    tokens: Tokens  # (k,)
    parents: Indices | None = None  # (k,) row of each token's parent, 0 <= parents[i] <= i; None is a chain
    distributions: tuple[Distribution, ...] | None = (
        None  # distribution each token was drawn from; None: nothing was drawn (one-hot)
    )
    expected: Probs | None = None  # (k,) the proposer's own estimate that the path down to here is accepted

    def __len__(self) -> int:
        return len(self.tokens)

    def head(self, k: int) -> Draft:
        """The first k tokens (a subtree, as parents come first)."""
        if k >= len(self.tokens):
            return self
        return Draft(
            self.tokens[:k],
            None if self.parents is None else self.parents[:k],
            None if self.distributions is None else self.distributions[:k],
            None if self.expected is None else self.expected[:k],
        )


class Budget(Protocol):
    """How much one round may draft. The length policy prices it; a proposer only asks."""

    @property
    def max_tokens(self) -> int: ...

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft token number n_drafted + 1, when the one just drafted has this confidence.

        The token just drafted stays in the draft whatever the answer: dropping a *sampled* token because of its own
        probability would bias the output (docs/exactness.md).
        """
        ...


class Proposer(Protocol):
    """Guesses what follows."""

    @property
    def name(self) -> str: ...

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        """At most budget.max_tokens tokens to follow the whole committed sequence; may be empty."""
        ...


@runtime_checkable
class SourceReader(Protocol):
    """A proposer that looks at the source of an encoder-decoder model, too."""

    def reading(self, source: Tokens, start: int) -> Proposer:
        """Who drafts one answer about this source. start: the context's length before the first answered token."""
        ...


EMPTY_DRAFT = Draft(np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Round:
    """One trip through the decode loop; the unit of streaming, statistics, adaptation and benchmarks."""

    tokens: tuple[int, ...]  # committed by this round: accepted drafts and one token more
    drafted: int  # tokens proposed
    accepted: int  # of them, committed
    width: int  # rows of the target's forward pass
    draft_s: float
    verify_s: float  # the target's forward pass
    other_s: float  # everything else in our own code
    proposer: str | None  # None: nothing was proposed
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a round would bring and cost for every number k of draft tokens. Lists, as of a handful of numbers they are
    faster than arrays: beside a small model's step pricing takes long.

    accepted[k]: expected number of accepted drafts, accepted[0] == 0, ascending.
    seconds[k]: expected duration of the round, drafting included.
    confidence[k]: chance that draft token k (1-based) is accepted if those before it are; confidence[0] == 1.
    idle: rounds since this proposer was last asked for a draft; probes: how many of its drafts in a row did not pay.
    stake: seconds that this answer may still lose against plain decoding.
    """

    accepted: list[float]  # max_tokens + 1 numbers
    seconds: list[float]
    confidence: list[float]
    idle: int = 0
    probes: int = 0
    stake: float = math.inf

    @property
    def rates(self) -> Probs:
        """Tokens per second for every k, (max_tokens + 1,)."""
        rates: Probs = (1.0 + np.array(self.accepted)) / np.array(self.seconds)
        return rates


class DraftLengthPolicy(Protocol):
    """Decides how many tokens to draft; 0 is always a choice. See runtime/speculation/draft_length.py.

    choose() and value() may be asked several times a round and change nothing; observe() ends every round.
    """

    @property
    def plain_every(self) -> int | None:
        """Rounds with drafts after which one goes without, to measure what that costs; None: never."""
        ...

    def choose(self, forecast: Forecast) -> int:
        """The number of draft tokens for this round."""
        ...

    def value(self, forecast: Forecast, k: int) -> float:
        """What a round with k drafts is worth, to compare proposers; larger is better."""
        ...

    def observe(self, n_tokens: int, seconds: float) -> None:
        """A round committed so many tokens in so much time."""
        ...
