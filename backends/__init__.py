"""Engines by name. Each lives in one module, is imported only when used, and knows no other engine.

A package of yours adds an engine through the entry point group "pilotfish.backends": name = "module:BACKEND".
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Protocol

from ..runtime.errors import EngineMissingError, OptionError, UnsupportedModelError
from ..runtime.interfaces import Weights

_BUILT_IN = {"onnx": "ort", "reference": "reference"}  # in the order in which they are tried
_GROUP = "pilotfish.backends"


class Backend(Protocol):
    """One engine: whether it is here, and how it opens a model."""

    @property
    def name(self) -> str: ...

    @property
    def install(self) -> str:
        """The command that adds the engine."""
        ...

    def version(self) -> str | None:
        """Version of the installed engine; None where it is not installed."""
        ...

    def devices(self) -> tuple[str, ...]:
        """Devices that can be named, the default first; empty where the engine is not installed."""
        ...

    def accepts(self, path: Path) -> bool:
        """Whether a model at this path (a .gguf file or a bundle folder) is of a form this engine opens."""
        ...

    def open(self, path: Path, *, device: str | None, threads: int, kv_dtype: str | None) -> Weights:
        """The weights on a device. Raises EngineMissingError, OptionError, ModelFileError, UnsupportedModelError."""
        ...


def names() -> tuple[str, ...]:
    """All known engines, installed or not, in the order in which they are tried."""
    return (*_BUILT_IN, *sorted(e.name for e in metadata.entry_points(group=_GROUP) if e.name not in _BUILT_IN))


def get(name: str) -> Backend:
    """The engine of this name. Raises OptionError for one nobody knows."""
    if name in _BUILT_IN:
        module = importlib.import_module(f".{_BUILT_IN[name]}", __name__)
        backend: Backend = module.BACKEND
        return backend
    for entry in metadata.entry_points(group=_GROUP):
        if entry.name == name:
            made: Backend = entry.load()
            return made
    raise OptionError(f"there is no engine {name!r}; known engines: {', '.join(names())}.")


def pick(path: Path, name: str | None) -> Backend:
    """The engine asked for, or the first installed one that opens the model at this path.

    Raises EngineMissingError with the command that adds it, UnsupportedModelError where none opens such a model.
    """
    if name is not None:
        backend = get(name)
        if backend.version() is None:
            raise EngineMissingError(f"the {name} engine is not installed. Add it with: {backend.install}")
        if not backend.accepts(path):
            raise UnsupportedModelError(
                f"the {name} engine does not open {path}; leave the engine out to pick another."
            )
        return backend
    ways = []
    for backend in map(get, names()):  # one by one: what another package brings is not imported without need
        if backend.name != "reference" and backend.accepts(path):
            if backend.version() is not None:
                return backend
            ways.append(backend.install)
    if ways:
        raise EngineMissingError(f"no engine that opens {path} is installed. Add one with: {' or '.join(ways)}")
    raise UnsupportedModelError(f"no engine opens {path}.")
