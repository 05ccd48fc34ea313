"""Engines by name. Each lives in a package of its own, is imported only when used, and knows no other engine.

A package of yours adds an engine through the entry point group "pilotfish.backends": name = "module:BACKEND".
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Protocol, runtime_checkable

from ..runtime.errors import EngineError, EngineMissingError, OptionError, PilotfishWarning, UnsupportedModelError
from ..runtime.files.gguf_model import GgufModel
from ..runtime.files.model_file import ModelFile
from ..runtime.profiling.canary import Canary
from ..runtime.text.tokenizer import Tokenizer
from .protocol import Backend

_BUILT_IN = {
    "onnx": "onnx.backend",
    "openvino": "openvino.backend",
    "llamacpp": "llamacpp.backend",
    "reference": "reference.backend",
}  # in the order in which they are tried
JUDGE = "reference"  # right and slow: runs only where it is named
EMULATED = frozenset({"static", "npu-emulated"})  # devices that show whether something runs, not how fast
_GROUP = "pilotfish.backends"


@runtime_checkable
class ChecksSettings(Protocol):
    """A backend that can say what it has before there is a model; one of another package may leave it to open()."""

    def check(self, device: str | None, kv_dtype: str | None, options: Mapping[str, object]) -> None:
        """Raise OptionError for a device, type or setting with which nothing can be opened here."""
        ...


@runtime_checkable
class AnswersItself(Protocol):
    """A backend that says what a model answers which nobody else here can judge."""

    def known_answer(self, model: ModelFile) -> Canary | None:
        """What the engine says itself, in another way than its sessions do; None where it cannot, or where others
        judge the model."""
        ...


@runtime_checkable
class OpensForeign(AnswersItself, Protocol):
    """A backend that opens .gguf files which nothing else here knows, and so answers and reads texts for them."""

    def tokenizer(self, file: GgufModel) -> Tokenizer:
        """The file's vocabulary by the engine's own functions. Raises PilotfishError."""
        ...

    def looks(self, file: GgufModel, *, cheaply: bool = False) -> dict[str, str]:
        """What sessions over the file can do, by topic, for a person. Raises what open() raises.

        cheaply: the file is not tried for it; empty where it never was.
        """
        ...


def foreign_openers() -> list[OpensForeign]:
    """The engines that run here and open .gguf files which nothing else here knows."""
    found = (get(name) for name in _BUILT_IN)
    return [backend for backend in found if isinstance(backend, OpensForeign) and usable(backend)]


def own_answer(model: ModelFile) -> Canary | None:
    """A known answer to a model that the judge does not know; None where no engine here has one."""
    found = (get(name) for name in _BUILT_IN)
    able = (b for b in found if isinstance(b, AnswersItself) and opens(b, model) and usable(b))
    answers = (backend.known_answer(model) for backend in able)
    return next((answer for answer in answers if answer is not None), None)


def check_settings(backend: Backend, device: str | None, kv_dtype: str | None, options: Mapping[str, object]) -> None:
    """Raise OptionError for what this engine is known not to have, whatever the model."""
    if isinstance(backend, ChecksSettings):
        backend.check(device, kv_dtype, options)


def installed(name: str) -> Backend:
    """The engine of this name, which runs here. Raises OptionError, and what require() raises."""
    backend = get(name)
    require(backend)
    return backend


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
            try:
                made: Backend = entry.load()
            except Exception as error:  # another package's code may fail in any way
                raise EngineMissingError(f"the {name} engine ({entry.value}) cannot be imported: {error}") from error
            return made
    raise OptionError(f"there is no engine {name!r}; known engines: {', '.join(names())}.")


def opens(backend: Backend, model: ModelFile, device: str | None = None) -> bool:
    """Whether this engine opens a model, directly or after an import."""
    return not {*model.formats, *model.imported_formats}.isdisjoint(backend.formats(device))


def automatic(backend: Backend) -> tuple[str, ...]:
    """Devices that are tried where none is named: not the judge's, and none that is emulated."""
    return () if backend.name == JUDGE else tuple(d for d in backend.devices() if d not in EMULATED)


def usable(backend: Backend) -> bool:
    """Whether the engine is installed and runs here."""
    return backend.version() is not None and backend.problem() is None


def require(backend: Backend) -> None:
    """Raise EngineMissingError where the engine is not installed, EngineError where it does not run, with the command
    that mends it."""
    if backend.version() is None:
        raise EngineMissingError(f"the {backend.name} engine is not installed. Add it with: {backend.install}")
    problem = backend.problem()
    if problem is not None:
        raise EngineError(problem)


def named(model: ModelFile, name: str, device: str | None = None) -> Backend:
    """The engine of this name, which must run here and open the model on this device.

    Raises EngineMissingError and EngineError with the command that mends it, OptionError, UnsupportedModelError.
    """
    backend = installed(name)
    if not opens(backend, model, device if device in backend.devices() else None):  # else open() says what is wrong
        raise UnsupportedModelError(
            f"the {name} engine does not open {model}, which holds {', '.join(model.formats)}; leave the engine out to "
            "pick another."
        )
    return backend


def openers(model: ModelFile, device: str | None = None) -> list[Backend]:
    """Every engine that runs here and opens the model, but for the judge.

    Raises EngineMissingError and EngineError with the commands that add or mend one, UnsupportedModelError where none
    opens such a model.
    """
    found, ways, problems = [], [], []
    for name in names():
        try:
            backend = get(name)
        except EngineMissingError as error:
            warnings.warn(f"left out: {error}", PilotfishWarning, stacklevel=2)
            continue
        if backend.name != JUDGE and opens(backend, model, device):
            problem = backend.problem()
            if problem is not None:
                problems.append(problem)
            elif backend.version() is not None:
                found.append(backend)
            else:
                ways.append(backend.install)
    if not found and problems:
        raise EngineError(f"no engine here opens {model}: {'; '.join(problems)}")
    if not found and ways:
        where = f" on the device {device}" if device else ""
        raise EngineMissingError(
            f"no installed engine opens {model}{where}. Others might; add one with: {' or '.join(ways)}"
        )
    if not found:
        raise UnsupportedModelError(f"no engine opens {model}, which holds {', '.join(model.formats)}.")
    return found
