"""Which engine, device and number of threads: the trials, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks import real, whole
from ..interfaces import Ability
from .canary import WRONG
from .row_classes import ANY_WIDTH, RowClasses


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is chosen for. The expected time of this job decides.

    acceptance: chance that a drafted token is right; 0 is for decoding without drafts.
    """

    prompt_tokens: int = 256
    new_tokens: int = 128
    acceptance: float = 0.5

    def __post_init__(self) -> None:
        whole("prompt_tokens of a job", self.prompt_tokens, 1)
        whole("new_tokens of a job", self.new_tokens, 1)
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
        """Expected time of a job: the prompt, and rounds of whichever width pays best.

        A round of w rows brings (1 - a^w) / (1 - a) tokens where every draft is accepted with chance a (Leviathan et
        al. 2023). Only widths that may be mixed count where exact.
        """
        rule = RowClasses(self.classes).rule() if exact and self.classes else ANY_WIDTH
        best = np.inf
        for width, seconds in self.step_s.items():
            if rule.floor(width) == width:
                seconds += self.switch_s * (width != rule.minimum)
                best = min(best, seconds / sum(job.acceptance**i for i in range(width)))
        return job.prompt_tokens * self.prefill_s + job.new_tokens * float(best)

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
