"""Pilotfish: an on-device language-model runtime. The same text sooner, in less memory, on what you have."""

from typing import TYPE_CHECKING

from .loading import load
from .runtime.beams import Beams
from .runtime.chat import Chat
from .runtime.choice import Job
from .runtime.errors import PilotfishError
from .runtime.excerpt import Excerpt, excerpt
from .runtime.model import Model
from .runtime.result import Result, Stats
from .runtime.sampling import Sampling
from .runtime.stream import Stream

if TYPE_CHECKING:
    from .exporting import export
    from .verifying import verify

__all__ = [
    "Beams",
    "Chat",
    "Excerpt",
    "Job",
    "Model",
    "PilotfishError",
    "Result",
    "Sampling",
    "Stats",
    "Stream",
    "excerpt",
    "export",
    "load",
    "verify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """export and verify are imported when they are first asked for: who runs a model needs neither."""
    if name == "export":
        from .exporting import export

        return export
    if name == "verify":
        from .verifying import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
