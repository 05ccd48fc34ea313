"""Numbers that a caller gives: of the right kind and in their range, or one line that says what they may be."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable

from .errors import OptionError

_SHOWN = 80  # characters of a value in a message


def whole(name: str, value: object, least: int, most: int | None = None, *, hint: str = "") -> int:
    """The value as an int. hint: what else the message says. Raises OptionError, which names the range."""
    limit = f"{least} or more" if most is None else f"from {least} to {most}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        limit, number = f"a whole number, {limit}", least - 1
    if number < least or (most is not None and number > most):
        raise OptionError(f"{name} is {shown(value)}, but must be {limit}{hint and '; '}{hint}.")
    return number


def real(name: str, value: object, limit: str, fits: Callable[[float], bool]) -> float:
    """The value as a float. limit: what fits(), which is asked about finite numbers only, in words.

    Raises OptionError.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and fits(number)):
        raise OptionError(f"{name} is {shown(value)}, but must be {'' if is_number else 'a number, '}{limit}.")
    return number


def check_seed(seed: object) -> None:
    """Raise OptionError for what is no seed; None is any."""
    if seed is not None:
        whole("seed", seed, 0, hint="leave it out for an answer that is another one each time")


def shown(value: object) -> str:
    """The value for a message, which it does not fill."""
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
        return f"a number of {value.bit_length()} bits"  # Python does not write numbers of thousands of digits
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def room_hint(needed: int, known: int) -> str:
    """How tokens that do not fit can be made to. needed: max_context that would hold them; known: the model's most."""
    if needed > known:
        return f"The model knows {known} positions: shorten the prompt, or ask for fewer new tokens."
    return f"Open it with max_context={needed} (--max-context {needed}) or more, or shorten the prompt."
