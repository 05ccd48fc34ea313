"""Which of many cases run by default; the others are `slow` and run with `pytest -m slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], *by_default: Any) -> list[Any]:
    """The cases as parameters, all but those named marked as slow."""
    return [case if case in by_default else pytest.param(case, marks=pytest.mark.slow) for case in cases]
