"""One thing or several, where either may be given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")


def several(given: _T | Iterable[_T] | None) -> tuple[_T, ...]:
    """The things given; None are none. A text, though it is a sequence, is one thing, and so is what is no sequence: a
    number."""
    if given is None:
        return ()
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        return (given,)
    return tuple(given)
