"""Pilotfish: an on-device language-model runtime. The same text sooner, in less memory, on what you have."""

import importlib
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
from .runtime.sound import read_wav
from .runtime.stream import Stream

if TYPE_CHECKING:
    from . import errors as errors
    from . import policies as policies
    from . import proposers as proposers
    from .draft_check import check_draft
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
    "check_draft",
    "excerpt",
    "export",
    "load",
    "read_wav",
    "verify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """What a program that runs a model may not need is imported when it is first asked for."""
    if name in ("errors", "policies", "proposers"):
        return importlib.import_module(f".{name}", __name__)
    if name == "check_draft":
        from .draft_check import check_draft

        return check_draft
    if name == "export":
        from .exporting import export

        return export
    if name == "verify":
        from .verifying import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
