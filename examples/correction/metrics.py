"""How good a correction is: edit distances, and what they come to over many texts. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@dataclass(frozen=True, slots=True)
class Score:
    """Shares, each between 0 and 1 (errors may exceed 1 where far too much was written).

    word_accuracy: 1 - word edits / right words. character_errors: character edits / right characters.
    sentence_accuracy: texts that are right to the last character.
    """

    word_accuracy: float
    character_errors: float
    sentence_accuracy: float

    def row(self) -> dict[str, float]:
        """The shares by name, rounded for a report."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def score(answers: Sequence[str], right: Sequence[str]) -> Score:
    """The score of the answers against the right texts, pair by pair."""
    pairs = list(zip(answers, right, strict=True))
    words = sum(distance(a.split(), b.split()) for a, b in pairs)
    characters = sum(distance(a, b) for a, b in pairs)
    return Score(
        1 - words / sum(len(b.split()) for b in right),
        characters / sum(len(b) for b in right),
        sum(a == b for a, b in pairs) / len(pairs),
    )


def dictionary() -> Callable[[str], str] | None:
    """A corrector that looks every unknown word up (pyspellchecker's likeliest candidate); None: not installed."""
    try:
        from spellchecker import SpellChecker
    except ImportError:
        return None
    checker = SpellChecker()
    known: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        given = match[0]
        low = given.lower()
        if low not in known:
            known[low] = low if checker.known([low]) else (checker.correction(low) or low)
        best = known[low]
        if best == low:
            return given
        if given.isupper() and len(given) > 1:
            return best.upper()
        return best.capitalize() if given[0].isupper() else best

    return lambda text: re.sub(r"[A-Za-z]+(?:'[A-Za-z]+)*", word, text)
