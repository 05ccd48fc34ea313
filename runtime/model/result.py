"""What a generation gives back. Counts and seconds are stored; rates are computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ..cache.shadow import QualityReport
from ..interfaces import FinishReason, ModelInfo, Round
from ..sampling.finite import for_json
from .listening import Spoken


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and seconds of one generation."""

    n_prompt: int
    n_reused: int  # prompt tokens that the cache held from an earlier turn
    n_tokens: int
    n_rounds: int
    drafted: int
    accepted: int
    ttft_s: float | None  # from the call to the first committed token; None: there was none
    draft_s: float
    verify_s: float
    other_s: float  # our own code around drafting and verifying
    self_judged: int  # tokens drafted over a compressed copy of the cache that the full cache was asked about,
    self_accepted: int  # and those of them that it would have had
    kv_bytes: int  # allocated for caches, the draft's included
    kv_entries: int  # that the target's cache holds at the end; fewer than tokens where a cache policy evicts
    engine: str
    device: str
    exact: bool
    trial: QualityReport | None = None  # what quality= has found out about a smaller cache

    @classmethod
    def of(
        cls,
        rounds: Sequence[Round],
        *,
        n_prompt: int,
        n_reused: int,
        ttft_s: float | None,
        judged: tuple[int, int],
        kv_bytes: int,
        kv_entries: int,
        info: ModelInfo,
        exact: bool,
        trial: QualityReport | None = None,
    ) -> Stats:
        """What these rounds add up to."""
        return cls(
            n_prompt=n_prompt,
            n_reused=n_reused,
            n_tokens=sum(len(r.tokens) for r in rounds),
            n_rounds=len(rounds),
            drafted=sum(r.drafted for r in rounds),
            accepted=sum(r.accepted for r in rounds),
            ttft_s=ttft_s,
            draft_s=sum(r.draft_s for r in rounds),
            verify_s=sum(r.verify_s for r in rounds),
            other_s=sum(r.other_s for r in rounds),
            self_judged=judged[0],
            self_accepted=judged[1],
            kv_bytes=kv_bytes,
            kv_entries=kv_entries,
            engine=info.engine,
            device=info.device,
            exact=exact,
            trial=trial,
        )

    @property
    def decode_s(self) -> float:
        """Seconds of all rounds; prompt processing is not in it."""
        return self.draft_s + self.verify_s + self.other_s

    @property
    def decode_tok_s(self) -> float:
        """Tokens per second of decoding."""
        return self.n_tokens / self.decode_s if self.decode_s else 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were accepted; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def self_acceptance(self) -> float | None:
        """1 - TV between the answers of the compressed and the full cache (see proposers/self_draft.py)."""
        return self.self_accepted / self.self_judged if self.self_judged else None

    @property
    def tokens_per_round(self) -> float:
        """Committed tokens per forward pass of the target."""
        return self.n_tokens / self.n_rounds if self.n_rounds else 0.0

    def as_dict(self) -> dict[str, object]:
        """Every field and every computed rate, for JSON."""
        rates = ("decode_s", "decode_tok_s", "acceptance", "self_acceptance", "tokens_per_round")
        return {k: for_json(v) for k, v in {**asdict(self), **{name: getattr(self, name) for name in rates}}.items()}


@dataclass(frozen=True, slots=True)
class Result:
    """One answer."""

    text: str
    token_ids: tuple[int, ...]  # everything committed, a final stop token included
    finish_reason: FinishReason
    rounds: tuple[Round, ...]
    stats: Stats
    spoken: tuple[Spoken, ...] = ()  # parts of a recording with their times, where those were asked for
    language: str | None = None  # of a recording, told or heard
    thinking: str | None = None  # what the model thought before it answered, where its template has a place for that


def judged(rounds: Iterable[Round], proposer: str) -> tuple[int, int]:
    """How many tokens of a proposer's chains the target has judged, and how many of those it accepted.

    The first rejection ends a chain: what follows it was never judged.
    """
    n_judged = n_accepted = 0
    for done in rounds:
        if done.proposer == proposer:
            n_judged += min(done.accepted + (len(done.tokens) > done.accepted), done.drafted)
            n_accepted += done.accepted
    return n_judged, n_accepted
