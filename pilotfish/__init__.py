"""Pilotfish: an on-device language-model runtime. The same text sooner, in less memory, on what you have."""

import importlib
from typing import TYPE_CHECKING

from .loading.load import load
from .runtime.decoding.beam_search import Beams
from .runtime.errors import PilotfishError
from .runtime.model.chat import Chat
from .runtime.model.excerpt import Excerpt, excerpt
from .runtime.model.model import Model
from .runtime.model.result import Result, Stats
from .runtime.model.stream import Stream
from .runtime.profiling.engine_trial import Job
from .runtime.sampling.sampling import Sampling
from .runtime.text.audio_features import read_wav

if TYPE_CHECKING:
    from . import errors as errors
    from . import policies as policies
    from . import proposers as proposers
    from .drafts.check import check_draft
    from .exporting.export import export
    from .verifying.verify import verify

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
        from .drafts.check import check_draft

        return check_draft
    if name == "export":
        from .exporting.export import export

        return export
    if name == "verify":
        from .verifying.verify import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
