"""What holds for the settings of every policy."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ...checks import real, whole

_MOST = 1 << 24  # entries: more than any model has positions


def check_settings(policy: Any) -> None:
    """Raise OptionError for a number that is not of its field's kind, negative, or larger than any cache."""
    for field in fields(policy):
        value = getattr(policy, field.name)
        if field.type == "int":
            whole(field.name, value, 0 if field.name == "sinks" else 1, _MOST)
        elif field.type == "float":
            real(field.name, value, "a finite number", lambda number: True)
