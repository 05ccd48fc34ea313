"""A budget for proposers that are tried alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Allowance:
    max_tokens: int
    stop_after: int = 99

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.stop_after
