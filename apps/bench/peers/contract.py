"""What a runtime is asked, what it answers, and how its time is taken. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class NotHereError(Exception):
    """The runtime is not installed."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a runtime is opened. path: its weights; ends: the tokens that end an answer; room: tokens in all.

    temperature: 0 is greedy; above, tokens are drawn from the whole distribution, beginning with `seed`.
    """

    variant: str
    path: str
    draft: str | None
    threads: int
    room: int
    ends: tuple[int, ...]
    encoder_decoder: bool = False
    engine: str | None = None  # Pilotfish's own
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, as text and as the tokens that everybody reads."""

    text: str
    ids: tuple[int, ...]
    n_tokens: int  # new ones at most


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. first_s: until the first tokens came, n_first of them; steps: passes of the large model that made
    the answer, where the runtime says so; ceiling_s: what these steps alone cost as they were measured before."""

    tokens: tuple[int, ...]
    seconds: float
    first_s: float
    n_first: int
    steps: int | None = None
    ceiling_s: float | None = None

    @property
    def rate(self) -> float:
        """Tokens per second once the first are there; of all where they came together."""
        later = len(self.tokens) - self.n_first
        return later / (self.seconds - self.first_s) if later else self.whole_rate

    @property
    def whole_rate(self) -> float:
        """Tokens per second, the prompt's time included."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0


class Engine(Protocol):
    """A runtime over opened weights."""

    version: str

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """Whether it takes what lies there; told from names alone."""
        ...

    @classmethod
    def open(cls, setup: Setup) -> Engine:
        """Raises NotHereError, or whatever the runtime raises."""
        ...

    def answer(self, question: Question) -> Answer: ...


class Arrivals:
    """Tokens of one answer as they come: up to the first that ends it, or the most that were asked for."""

    def __init__(self, ends: Iterable[int], n_tokens: int) -> None:
        self._ends, self._most = frozenset(ends), n_tokens
        self.tokens: list[int] = []
        self.steps = 0  # times that tokens came
        self._began = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self._last_s = 0.0

    def add(self, tokens: Iterable[int]) -> bool:
        """Note tokens that came together; whether the answer is at its end."""
        before = len(self.tokens)
        for token in tokens:
            if self.complete:
                break
            self.tokens.append(int(token))
        if len(self.tokens) > before:
            self.steps += 1
            self._last_s = time.perf_counter() - self._began
            if self._first is None:
                self._first = self._last_s, len(self.tokens)
        return self.complete

    @property
    def complete(self) -> bool:
        return len(self.tokens) >= self._most or bool(self.tokens and self.tokens[-1] in self._ends)

    def answer(self, steps: int | None = None, ceiling_s: float | None = None) -> Answer:
        """What came, timed until the last token."""
        first_s, n_first = self._first or (time.perf_counter() - self._began, 0)
        return Answer(tuple(self.tokens), max(self._last_s, first_s), first_s, n_first, steps, ceiling_s)


def is_gguf(path: Path) -> bool:
    """Whether it is one file of llama.cpp's kind, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def has_safetensors(path: Path) -> bool:
    """Whether it is a folder of Hugging Face weights."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))
