"""Which engine, device and number of threads: the trials, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..checks import real, whole
from ..interfaces import Ability
from .canary import WRONG
from .row_classes import ANY_WIDTH, RowClasses, RowRule, narrow_pays


@dataclass(frozen=True, slots=True)
class TextKind:
    """How much of such a text follows two tokens that stood together in it before, and the chance that a drafted token
    is right there, and elsewhere."""

    name: str
    repeats: float
    right: float
    elsewhere: float


# Chat and code: answers of SmolLM2-135M to 50 questions and 30 functions to complete. Copying is assumed.
KINDS = (
    TextKind("chat", 0.27, 0.69, 0.13),
    TextKind("code", 0.61, 0.84, 0.28),
    TextKind("copy", 0.95, 0.95, 0.30),
)


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is chosen for. The expected time of this job decides.

    acceptance: chance that a drafted token is right; None is an answer that is chat, code and copying in equal parts,
    with drafts where they bring something; 0 is for decoding without drafts.
    """

    prompt_tokens: int = 256
    new_tokens: int = 128
    acceptance: float | None = None

    def __post_init__(self) -> None:
        whole("prompt_tokens of a job", self.prompt_tokens, 1)
        whole("new_tokens of a job", self.new_tokens, 1)
        if self.acceptance is not None:
            real("acceptance of a job", self.acceptance, "from 0 to below 1", lambda x: 0 <= x < 1)


@dataclass(frozen=True, slots=True)
class EngineTrial:
    """What one engine on one device with so many threads did."""

    engine: str
    version: str
    device: str
    threads: int
    step_s: dict[int, float]  # seconds of a step of so many rows; empty: it could not be tried
    prefill_s: float = 0.0  # seconds per prompt token
    switch_s: float = 0.0  # how much longer a step takes after one of another width
    classes: tuple[tuple[int, ...], ...] = ()  # widths with equal bits
    canary_error: float | None = None  # None: no answer is known
    problem: str = ""  # why it cannot be used
    busy: float = 0.0  # share of the processor that other programs used
    abilities: tuple[Ability, ...] = ()  # of its sessions, sorted

    @property
    def usable(self) -> bool:
        return not self.problem and bool(self.step_s) and (self.canary_error is None or self.canary_error < WRONG)

    def seconds(self, job: Job, exact: bool = True) -> float:
        """Expected time of a job: the prompt, and rounds of whichever width pays best."""
        a = job.acceptance
        kinds = KINDS if a is None else [replace(kind, right=a, elsewhere=a) for kind in KINDS]
        token_s = sum(self.token_s(kind, exact) for kind in kinds) / len(kinds)
        return job.prompt_tokens * self.prefill_s + job.new_tokens * token_s

    def token_s(self, kind: TextKind, exact: bool = True) -> float:
        """Expected seconds of a token of such a text."""
        elsewhere = self._token_s(kind.elsewhere, exact)
        rule = self._rule(exact)
        if narrow_pays(self.step_s.get(1), self.step_s.get(rule.minimum), self.switch_s):
            elsewhere = self.step_s[1]
        return kind.repeats * self._token_s(kind.right, exact) + (1 - kind.repeats) * elsewhere

    def _token_s(self, acceptance: float, exact: bool) -> float:
        """Seconds of a token where every draft is accepted with this chance a: a round of w rows brings
        (1 - a^w) / (1 - a) tokens (Leviathan et al. 2023). Only widths that may be mixed count where exact."""
        rule = self._rule(exact)
        best = np.inf
        for width, seconds in self.step_s.items():
            if rule.floor(width) == width:
                seconds += self.switch_s * (width != rule.minimum)
                best = min(best, seconds / sum(acceptance**i for i in range(width)))
        return float(best)

    def _rule(self, exact: bool) -> RowRule:
        return RowClasses(self.classes).rule() if exact and self.classes else ANY_WIDTH

    def __str__(self) -> str:
        return f"{self.engine} {self.version} on {self.device}, {self.threads} threads"


@dataclass(frozen=True, slots=True)
class Choice:
    """The trials, those that can be used first and the fastest of them first, and the job they were compared by."""

    job: Job
    exact: bool
    trials: tuple[EngineTrial, ...]

    @classmethod
    def of(cls, trials: list[EngineTrial], job: Job, exact: bool) -> Choice:
        """The trials in order."""
        ordered = sorted(trials, key=lambda t: (not t.usable, t.seconds(job, exact) if t.step_s else np.inf))
        return cls(job, exact, tuple(ordered))
