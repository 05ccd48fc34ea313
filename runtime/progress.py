"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float], None]
"""(what is being done, share of it that is done, 0 to 1)"""
Share: TypeAlias = Callable[[float], None]
"""The share that is done, 0 to 1, of what somebody else has a name for"""
Counted: TypeAlias = Callable[[int, int], None]
"""(done, in all), of tokens or bytes"""
