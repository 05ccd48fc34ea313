"""Pilotfish: an on-device language-model runtime. The same text sooner, in less memory, on what you have."""

from .loading import load
from .runtime.chat import Chat
from .runtime.choice import Job
from .runtime.errors import PilotfishError
from .runtime.model import Model
from .runtime.result import Result, Stats
from .runtime.sampling import Sampling
from .runtime.stream import Stream

__all__ = ["Chat", "Job", "Model", "PilotfishError", "Result", "Sampling", "Stats", "Stream", "load"]
__version__ = "0.1.0"
