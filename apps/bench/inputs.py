"""What `pilotfish bench cache` is given: shares, policies of a size, a text, and what is hidden in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ...runtime.cache.policies import CachePolicy, TokenSelect, policy_by_name
from ...runtime.errors import OptionError
from ...runtime.interfaces import Indices, Tokens
from ...runtime.text.tokenizer import Tokenizer

_PLACES = ("lighthouse", "harbour", "museum", "station", "bakery", "garden", "library", "castle")
MAX_KEYS = len(_PLACES)
_NEEDLE = "\n\nThe secret number of the {} is {}.\n\n"
_QUESTION = "\n\nAs was said above, the secret number of the {} is"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. length: tokens of the text, the last `predicted` of which are predicted.

    keys: numbers hidden in one text, which are all asked for; 0: that is not measured.
    """

    length: int
    predicted: int
    needle_lengths: tuple[int, ...]
    depths: int
    keys: int


@dataclass(frozen=True, slots=True)
class Haystack:
    """A text with numbers hidden in it, and at its end the questions with their answers."""

    tokens: Tokens
    sought: Indices  # places of the tokens that must be found, ascending


def haystack(tokenizer: Tokenizer, text: Tokens, length: int, depths: Sequence[float], seed: int) -> Haystack:
    """So many tokens before the last answer, with one number at each depth (0 to 1), asked for in any order.

    Raises OptionError where that is too short for what is hidden and asked.
    """
    rng = np.random.default_rng(seed)
    numbers = rng.integers(10_000, 100_000, len(depths))
    hidden = [tokenizer.encode(_NEEDLE.format(*pair), bos=False) for pair in zip(_PLACES, numbers, strict=False)]
    order = rng.permutation(len(depths)).tolist()
    asked = [_asked(tokenizer, _QUESTION.format(_PLACES[i]), str(numbers[i])) for i in order]
    room = length - sum(map(len, hidden)) - sum(len(tokens) for tokens, _ in asked) + int(asked[-1][1])
    if room < 2 * len(depths):
        raise OptionError(
            f"{len(depths)} needles and their questions take {length - room} tokens, so {length} are too few; see "
            "--needle-lengths and --keys."
        )
    parts: list[Tokens] = []
    begin = 0
    for depth, needle in zip(depths, hidden, strict=True):
        end = max(int(room * depth), 1)  # behind the first token, which may be special
        parts += [text[begin:end], needle]
        begin = end
    parts.append(text[begin:room])
    sought: list[int] = []
    n = sum(map(len, parts))
    for tokens, n_sought in asked:
        parts.append(tokens)
        n += len(tokens)
        sought += range(n - n_sought, n)
    return Haystack(np.concatenate(parts), np.array(sought, dtype=np.int64))


def _asked(tokenizer: Tokenizer, question: str, number: str) -> tuple[Tokens, int]:
    """A question with its answer, and how many of the last tokens are the number."""
    start = len(tokenizer.encode(question, bos=False))
    tokens = tokenizer.encode(f"{question} {number}", bos=False)
    while not tokenizer.decode(tokens[start : start + 1].tolist()).strip():
        start += 1  # a space is no part of what must be remembered
    return tokens, len(tokens) - start


def read_share(text: str) -> Fraction:
    """The number that a text stands for, as 1/4. Raises OptionError for anything that is no part of a whole."""
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share < 1:
        raise OptionError(f"--share {text!r} must be a part of the text, as 1/4 or 0.25.")
    return share


def names_budget(policy: str) -> bool:
    """Whether the policy is given with a budget of its own."""
    return any(setting.startswith("budget=") for setting in policy.partition(":")[2].split(","))


def sized_policy(name: str, limit: int | None) -> CachePolicy:
    """The policy with a cache of at most so many entries, a quarter of which it fills between two selections; one that
    evicts nothing shows a step at most so many. None: as it is named."""
    if limit is None:
        return policy_by_name(name)
    base, _, more = name.partition(":")
    if base == TokenSelect.name:
        return policy_by_name(f"{base}:budget={limit - TokenSelect().every}" + (f",{more}" if more else ""))
    every = max(limit // 4, 1)
    window = max(min(32, every, (limit - every) // 2), 1)
    sized = f"budget={limit - every},every={every},window={window}"
    return policy_by_name(f"{base}:{sized}" + (f",{more}" if more else ""))


def read_text(path: Path | None) -> str:
    """A text file's, or a long English text that every Python has. Raises OptionError."""
    if path is None:
        from pydoc_data.topics import topics

        return "\n".join(topics.values())
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as UTF-8 text: {error}.") from None
