"""What `pilotfish bench cache` is given: shares, policies of a size, and a text."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from ..runtime.cache_policies import CachePolicy, policy_by_name
from ..runtime.errors import OptionError


def read_share(text: str) -> Fraction:
    """The number that a text stands for, as 1/4. Raises OptionError for anything that is no part of a whole."""
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share < 1:
        raise OptionError(f"--share {text!r} must be a part of the text, as 1/4 or 0.25.")
    return share


def sized_policy(name: str, limit: int) -> CachePolicy:
    """The policy with a cache of at most so many entries, a quarter of which it fills between two selections."""
    every = max(limit // 4, 1)
    window = max(min(32, every, (limit - every) // 2), 1)
    sized = f"budget={limit - every},every={every},window={window}"
    base, _, more = name.partition(":")
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
