"""The types the rest implements. Read this file first.

Vocabulary. p is the target's law, q the draft's. The *context* is the whole committed sequence, prompt and output.
An *entry* is one token's keys and values in a KV cache; its *position* is its place in the context.

The invariant that carries the decode loop: **between rounds the cache covers the whole context but its last token.**
A round runs one forward pass over that last token (row 0) and the drafted tokens (rows 1..k), accepts a path, and
truncates the cache back to the invariant.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.int64]  # (n,)
Indices: TypeAlias = npt.NDArray[np.int64]  # (n,)
Floats: TypeAlias = npt.NDArray[np.float32]  # logits, hidden states, attention
Probs: TypeAlias = npt.NDArray[np.float64]  # laws and chances

Ability: TypeAlias = Literal[
    "tree", "evict_tokens", "evict_heads", "attention", "queries", "keys", "hidden", "fork", "save"
]
Observation: TypeAlias = Literal["hidden", "queries", "attention"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


_CERTAIN: Probs = np.ones(1)


@dataclass(frozen=True, slots=True)
class Law:
    """A probability distribution over the vocabulary: p, q, or what is left of them after a rejection.

    Sparse where few tokens have mass: greedy decoding is a law with one id. Ids ascend, so a uniform number picks
    the same token from the sparse and from the dense form.
    """

    probs: Probs  # (m,) sums to 1
    ids: Indices | None = None  # (m,) ascending; None: probs cover the whole vocabulary

    @classmethod
    def point(cls, token: int) -> Law:
        """The law of a certain token."""
        return cls(_CERTAIN, np.array([token], dtype=np.int64))

    def prob(self, token: int) -> float:
        """Probability of one token."""
        if self.ids is None:
            return float(self.probs[token])
        i = int(np.searchsorted(self.ids, token))
        return float(self.probs[i]) if i < len(self.ids) and self.ids[i] == token else 0.0

    def pick(self, u: float) -> int:
        """The token at quantile u in [0, 1): inverse transform sampling, one uniform number a token."""
        if len(self.probs) == 1:
            return int(self.ids[0]) if self.ids is not None else 0
        cumulative = np.cumsum(self.probs)
        i = bisect_right(cumulative, u * cumulative[-1])  # never a token without mass, but
        if i == len(cumulative):  # where u * total was rounded up to the total
            i = int(np.flatnonzero(self.probs)[-1])
        return i if self.ids is None else int(self.ids[i])

    def without(self, token: int) -> Law:
        """This law given that it was not `token`: what the next sibling is drawn from, without replacement."""
        probs = self.probs.copy()
        probs[token if self.ids is None else self.ids == token] = 0.0
        return Law(probs / probs.sum(), self.ids)

    def dense(self, vocab_size: int) -> Probs:
        """Probabilities of the whole vocabulary, (vocab_size,)."""
        if self.ids is None:
            return self.probs
        full = np.zeros(vocab_size)
        full[self.ids] = self.probs
        return full


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine knows about the weights it opened, and where they run."""

    architecture: str
    vocab_size: int
    context_length: int  # tokens the model was trained for
    n_layers: int
    n_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    engine: str  # "onnx", "openvino", "llamacpp", "reference", "toy"
    engine_version: str
    device: str
    threads: int
    digest: str  # of the weights, so that what was measured is remembered for the right model
    settings: str = ""  # whatever else changes bits or speed: cache type, activation type
    widths: tuple[int, ...] = ()  # ascending: the only ones of decode steps, others are padded to them; (): any


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass gave back. The arrays belong to the caller until the session's next forward pass."""

    logits: Floats  # (n_logits, vocab_size)
    hidden: Floats | None = None  # (n, hidden_size), after the final norm; observed
    queries: Floats | None = None  # (n_layers, n_heads, n, head_dim), after rotation; observed
    attention: Floats | None = None  # (n_layers, n_heads, n, n_entries), softmax; observed


@runtime_checkable
class Session(Protocol):
    """One KV cache over some weights: one sequence, used from one thread at a time."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def abilities(self) -> frozenset[Ability]: ...

    @property
    def max_context(self) -> int:
        """How many entries the cache can hold."""
        ...

    @property
    def positions(self) -> Indices:
        """Position of every entry, ascending; has gaps once something was evicted.

        Where heads keep entries of their own: the last position that any of them keeps there.
        """
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the cache as stored."""
        ...

    def forward(
        self,
        tokens: Tokens,
        *,
        n_logits: int,
        parents: Indices | None = None,
        observe: frozenset[Observation] = frozenset(),
    ) -> Step:
        """Append the tokens and return logits of the last `n_logits` of them (0: none).

        parents: None for a chain. For a tree (ability "tree") one row index per token: parents[0] == 0 and
            parents[r] < r; a row sees the cache, its ancestors and itself, and its position is its parent's + 1.
        Raises ContextFullError, AbilityError or OptionError before anything changes.
        """
        ...

    def truncate(self, n_tokens: int) -> None:
        """Forget every entry at a position >= n_tokens. Cheap."""
        ...

    def accept(self, rows: Indices) -> None:
        """After a tree: keep, of the last forward pass, only these rows, a path from row 0 downwards.

        A tree must be settled, by this or by truncating to before its first branch, before anything else is done.
        """
        ...

    def keep(self, entries: Indices) -> None:
        """Evict every entry but these (ascending indices into `positions`); final.

        entries: (n,) for all layers and heads (ability "evict_tokens"), or (n_layers, kv_heads, n), equally many for
            each, ability "evict_heads".
        """
        ...

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        """Keys (after rotation) and values of a layer, each (kv_heads, n_entries, head_dim); a view. Ability "keys"."""
        ...

    def fork(self) -> Session:
        """A new session with the same entries, independent of this one from here on. Ability "fork"."""
        ...

    def save(self) -> bytes:
        """The entries, for restore() by a session of the same weights, engine, device and settings. Ability "save"."""
        ...

    def restore(self, state: bytes) -> None:
        """Hold the saved entries instead of the present ones; the next step gives the bits it would have given.

        Raises OptionError for what save() has not made or what other weights or settings made, ContextFullError
        where the entries do not fit, each before anything changes. Ability "save".
        """
        ...

    def close(self) -> None:
        """Free the cache. A second close does nothing."""
        ...


@runtime_checkable
class Weights(Protocol):
    """Weights opened by one engine on one device. Sessions share them."""

    @property
    def info(self) -> ModelInfo: ...

    def session(self, max_context: int | None = None) -> Session:
        """An empty cache. `max_context` defaults to the model's context length."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens guessed to follow the context. Rows number the forward pass: row 0 is the context's last token and
    row i + 1 is draft token i.

    Siblings are listed in the order they were drawn, each with the law it was drawn from: the same law again
    (with replacement) or the law without its elder siblings (without replacement). The verifier needs no more.
    """

    tokens: Tokens  # (k,)
    parents: Indices | None = None  # (k,) row of each token's parent, 0 <= parents[i] <= i; None is a chain
    laws: tuple[Law, ...] | None = None  # law each token was drawn from; None: nothing was drawn (one-hot)
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
            None if self.laws is None else self.laws[:k],
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
    """What a round would bring and cost for every number k of draft tokens.

    accepted[k]: expected number of accepted drafts, accepted[0] == 0, ascending.
    seconds[k]: expected duration of the round, drafting included.
    confidence[k]: chance that draft token k (1-based) is accepted if those before it are; confidence[0] == 1.
    idle: rounds since this proposer was last asked for a draft; probes: how many of its drafts in a row did not pay.
    stake: seconds that this answer may still lose against plain decoding.
    """

    accepted: Probs  # (max_tokens + 1,)
    seconds: Probs  # (max_tokens + 1,)
    confidence: Probs  # (max_tokens + 1,)
    idle: int = 0
    probes: int = 0
    stake: float = math.inf

    @property
    def rates(self) -> Probs:
        """Tokens per second for every k."""
        return (1.0 + self.accepted) / self.seconds


class DraftLengthPolicy(Protocol):
    """Decides how many tokens to draft; 0 is always a choice. See runtime/draft_length.py.

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


def as_tokens(tokens: Sequence[int] | npt.NDArray[np.integer]) -> Tokens:
    """A token array from anything that holds token ids."""
    return np.asarray(tokens, dtype=np.int64)
