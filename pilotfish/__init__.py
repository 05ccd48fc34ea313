"""Pilotfish: an on-device language-model runtime. The same text sooner, in less memory, on what you have."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a name is; at run time it is imported when it is first asked for
    from . import errors as errors
    from . import policies as policies
    from . import proposers as proposers
    from .drafts.check import check_draft
    from .exporting.export import export
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

_MODULES = ("errors", "policies", "proposers")
_HOMES = {
    "Beams": "runtime.decoding.beam_search",
    "Chat": "runtime.model.chat",
    "Excerpt": "runtime.model.excerpt",
    "Job": "runtime.profiling.engine_trial",
    "Model": "runtime.model.model",
    "PilotfishError": "runtime.errors",
    "Result": "runtime.model.result",
    "Sampling": "runtime.sampling.sampling",
    "Stats": "runtime.model.result",
    "Stream": "runtime.model.stream",
    "check_draft": "drafts.check",
    "excerpt": "runtime.model.excerpt",
    "export": "exporting.export",
    "load": "loading.load",
    "read_wav": "runtime.text.audio_features",
    "verify": "verifying.verify",
}


def __getattr__(name: str) -> object:
    """A public name, imported: a command line that is told to stop, or asked for help, waits for nothing else."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
