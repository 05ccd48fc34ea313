"""Every error and warning a caller of Pilotfish may catch. All of them are PilotfishErrors, but for the warning."""

from .runtime.errors import (
    AbilityError,
    CacheWriteError,
    ChatTemplateError,
    ContextFullError,
    DamagedWeightsError,
    DownloadError,
    EngineError,
    EngineMissingError,
    ModelFileError,
    ModelNotFoundError,
    NotFiniteError,
    OptionError,
    ParityError,
    PilotfishError,
    PilotfishWarning,
    UnsupportedModelError,
)

__all__ = [
    "AbilityError",
    "CacheWriteError",
    "ChatTemplateError",
    "ContextFullError",
    "DamagedWeightsError",
    "DownloadError",
    "EngineError",
    "EngineMissingError",
    "ModelFileError",
    "ModelNotFoundError",
    "NotFiniteError",
    "OptionError",
    "ParityError",
    "PilotfishError",
    "PilotfishWarning",
    "UnsupportedModelError",
]
