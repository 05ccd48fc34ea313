"""Typing errors: what turns clean text into what somebody might have typed. Documented in README.md."""

from __future__ import annotations

import random
from dataclasses import dataclass

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # each key also borders on those below and above it
KINDS = ("neighbour", "transposition", "drop", "doubling", "insertion")


def _neighbours() -> dict[str, str]:
    beside = {}
    for r, row in enumerate(ROWS):
        for c, key in enumerate(row):
            near = [row[i] for i in (c - 1, c + 1) if 0 <= i < len(row)]
            above = [ROWS[r - 1][i] for i in (c, c + 1) if i < len(ROWS[r - 1])] if r else []
            below = [ROWS[r + 1][i] for i in (c - 1, c) if 0 <= i < len(ROWS[r + 1])] if r + 1 < len(ROWS) else []
            beside[key] = "".join(near + above + below)
    return beside


NEIGHBOURS = _neighbours()  # of each letter on a QWERTY keyboard


@dataclass(frozen=True, slots=True)
class Noise:
    """How often which error happens. A rate is a chance per letter, but for `space` and `casing`: per space, per word.

    clean: share of texts that are left alone, so that a model learns to leave right text alone.
    letter: highest chance that a letter is the place of an error; each text draws its own, uniformly from 0 to this.
    weights: of KINDS, relative to one another.
    space: chance that a space is missing; a tenth of it, that a word is torn in two by one.
    casing: chance that a word's first letter has the other case; half of it, that the second letter is a capital too.
    """

    clean: float = 0.15
    letter: float = 0.12
    weights: tuple[float, ...] = (0.3, 0.25, 0.2, 0.1, 0.15)
    space: float = 0.015
    casing: float = 0.01

    def apply(self, text: str, rng: random.Random) -> str:
        """The text with errors, drawn from `rng`; the same for the same state of it."""
        if rng.random() < self.clean:
            return text
        rate = rng.random() * self.letter
        words = text.split(" ")
        noisy = [self._word(word, rate, rng) for word in words]
        result = noisy[0]
        for word in noisy[1:]:
            result += word if rng.random() < self.space else " " + word
        return result

    def _word(self, word: str, rate: float, rng: random.Random) -> str:
        if word[:1].isalpha() and rng.random() < self.casing:
            word = word[0].swapcase() + word[1:]
        if len(word) > 2 and word[:2].isalpha() and rng.random() < self.casing / 2:
            word = word[:2].upper() + word[2:]
        letters = list(word)
        i = 0
        while i < len(letters):
            if letters[i].isalpha() and rng.random() < rate:
                i += self._error(letters, i, rng)
            i += 1
        if len(letters) > 4 and rng.random() < self.space / 10:
            letters.insert(rng.randrange(2, len(letters) - 1), " ")
        return "".join(letters)

    def _error(self, letters: list[str], i: int, rng: random.Random) -> int:
        """Make an error at letter `i`, in place; how many letters more than one it concerned."""
        kind = rng.choices(KINDS, self.weights)[0]
        letter = letters[i]
        if kind == "transposition" and i + 1 < len(letters) and letters[i + 1].isalpha():
            first, second = letters[i + 1], letter
            if letter.isupper() and first.islower():
                first, second = first.upper(), second.lower()  # the shift key is held for the first letter
            letters[i : i + 2] = [first, second]
            return 1
        if kind == "drop" and len(letters) > 1:
            del letters[i]
            return -1
        if kind == "doubling":
            letters.insert(i, letter)
            return 1
        near = NEIGHBOURS.get(letter.lower(), letter.lower())
        other = rng.choice(near)
        if kind == "insertion":
            letters.insert(i + rng.randrange(2), other)
            return 1
        letters[i] = other.upper() if letter.isupper() else other
        return 0
