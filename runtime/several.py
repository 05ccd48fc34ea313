"""One thing or several, where either may be given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")


def several(given: _T | Iterable[_T]) -> tuple[_T, ...]:
    """The things given. A text is one thing, and so is whatever cannot be gone through: a number."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        return (given,)  # type: ignore[return-value]  # a text is a sequence of texts, too
    return tuple(given)
