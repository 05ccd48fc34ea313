"""Cache policies, and what one needs to write another. See docs/kv-cache.md."""

from .runtime.cache import policies
from .runtime.cache.policies import *  # noqa: F403 - each by name in that package's own __all__
from .runtime.interfaces import Ability, Floats, Indices

__all__ = ["Ability", "Floats", "Indices"]
__all__ += policies.__all__
