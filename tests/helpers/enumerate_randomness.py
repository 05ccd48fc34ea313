"""Runs a program once for every outcome of its random numbers, and weighs each outcome exactly.

A lazy uniform number is an interval that shrinks when it is compared. A comparison that cuts the interval forks the
run; the weight of a run is the product of the lengths. Any code that only compares its uniforms is enumerated exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


class _Run:
    def __init__(self, script: list[bool]) -> None:
        self.script, self.taken, self.weight = script, list[bool](), 1.0


class LazyUniform:
    def __init__(self, run: _Run, scale: float = 1.0, bounds: list[float] | None = None) -> None:
        self.run, self.scale, self.bounds = run, scale, bounds if bounds is not None else [0.0, 1.0]

    def __mul__(self, factor: float) -> LazyUniform:
        return LazyUniform(self.run, self.scale * float(factor), self.bounds)

    def __lt__(self, limit: float) -> bool:
        cut = float(limit) / self.scale if self.scale > 0 else (2.0 if limit > 0 else -1.0)
        low, high = self.bounds
        if cut >= high:
            return True
        if cut <= low:
            return False
        run = self.run
        i = len(run.taken)
        below = run.script[i] if i < len(run.script) else True
        run.taken.append(below)
        run.weight *= ((cut - low) if below else (high - cut)) / (high - low)
        self.bounds[:] = [low, cut] if below else [cut, high]
        return below


class LazyRng:
    """Stands in for numpy.random.Generator where only random() is used."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def random(self) -> LazyUniform:
        return LazyUniform(self._run)


def outcomes(program: Callable[[LazyRng], T]) -> Iterator[tuple[T, float]]:
    """Every outcome of the program with its probability."""
    script: list[bool] | None = []
    while script is not None:
        run = _Run(script)
        yield program(LazyRng(run)), run.weight
        script = run.taken
        while script and not script[-1]:
            script = script[:-1]
        script = [*script[:-1], False] if script else None


def distribution_of(program: Callable[[LazyRng], T]) -> dict[T, float]:
    """Probability of every distinct outcome."""
    distribution: dict[T, float] = {}
    for outcome, weight in outcomes(program):
        distribution[outcome] = distribution.get(outcome, 0.0) + weight
    return distribution
