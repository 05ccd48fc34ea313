"""llama.cpp's shared libraries as they lie in llama-cpp-python: devices, types, and what the library has to say."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...runtime.errors import EngineMissingError

KV_TYPES = MappingProxyType(  # ggml's numbers of the types that a cache can have
    {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20}
)
_BLOCK = MappingProxyType(  # elements and bytes of a block
    {
        **{"f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q5_1": (32, 24), "q5_0": (32, 22)},
        **{"q4_1": (32, 20), "q4_0": (32, 18), "iq4_nl": (32, 18)},
    }
)
_GPU_KINDS = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU
_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # levels of ggml's log


def version() -> str | None:
    """Version of llama-cpp-python, read without loading the library; None where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def library() -> Any:
    """The module of llama.cpp's C functions, its log turned to us."""
    module: Any = importlib.import_module("llama_cpp.llama_cpp")
    _LOG.attach(module)
    module.llama_backend_init()
    return module


def folder() -> Path:
    """Where the shared libraries lie; found without loading them."""
    chosen = os.environ.get("LLAMA_CPP_LIB_PATH")
    if chosen:
        return Path(chosen)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineMissingError("llama-cpp-python is not installed.")
    return Path(spec.origin).parent / "lib"


def shared_libraries() -> tuple[Path, ...]:
    """Every shared library of this build, sorted by name, each once."""
    names = (".so", ".dll", ".dylib")
    found = {path.resolve() for path in folder().glob("*") if any(name in path.name for name in names)}
    return tuple(sorted(found))


def block_bytes(type_name: str, elements: int) -> int:
    """Bytes of so many elements of a cache."""
    block, size = _BLOCK[type_name]
    return elements // block * size


def block_elements(type_name: str) -> int:
    """Elements that a block of this cache type holds."""
    return _BLOCK[type_name][0]


@functools.cache
def gpus() -> dict[str, int]:
    """The address of each GPU's ggml device by its name in lower case ("cuda0", "vulkan0"), in ggml's order."""
    count = function("ggml_backend_dev_count", ctypes.c_size_t)
    get = function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    name = function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    found = {}
    for i in range(count()):
        device = get(i)
        if device and kind(device) in _GPU_KINDS:
            found[name(device).decode().lower()] = int(device)
    return found


@functools.cache
def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A C function of ggml, which the Python package does not declare."""
    for loaded in _libraries():
        found: Any = getattr(loaded, name, None)
        if found is not None:
            found.restype, found.argtypes = result, list(arguments)
            return found  # type: ignore[no-any-return]
    raise AttributeError(f"this build of llama.cpp has no {name}")


@functools.cache
def _libraries() -> tuple[Any, ...]:
    """libllama and, where they are files of their own, the ggml libraries that it brought along."""
    loaded = [library()._lib]
    for stem in ("ggml", "ggml-base"):
        for name in (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll", f"lib{stem}.dll"):
            if (folder() / name).exists():
                loaded.append(ctypes.CDLL(str(folder() / name)))
                break
    return tuple(loaded)


class _Log:
    """Warnings and errors of llama.cpp, kept for each thread that listens, printed for none."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._recent: deque[tuple[int, str]] = deque(maxlen=20)  # of all threads that do not listen
        self._callback: Any = None  # the library calls it for as long as the process lives

    def attach(self, module: Any) -> None:
        self._callback = module.llama_log_callback(self._write)
        module.llama_log_set(self._callback, None)

    def _write(self, level: int, text: bytes | None, _: object) -> None:
        lines: deque[tuple[int, str]] = getattr(self._local, "lines", None) or self._recent
        if not text:
            return
        said = text.decode("utf-8", "replace").rstrip("\n")
        if level == _CONTINUED and lines:
            lines[-1] = (lines[-1][0], lines[-1][1] + said)
        elif said:
            lines.append((level, said))

    @contextmanager
    def listen(self) -> Iterator[Listened]:
        before = getattr(self._local, "lines", None)
        self._local.lines = deque([(0, "")], maxlen=400)
        try:
            yield Listened(self._local.lines)
        finally:
            self._local.lines = before

    def recent(self) -> Listened:
        """What was said while nobody listened: a step is too short to begin listening for it."""
        return Listened(self._recent)


class Listened:
    """What llama.cpp said meanwhile."""

    def __init__(self, lines: deque[tuple[int, str]]) -> None:
        self._lines = lines

    def __contains__(self, words: str) -> bool:
        return any(words in said for _, said in self._lines)

    @property
    def reason(self) -> str:
        """Its last errors, or else warnings, as the end of a sentence of ours."""
        for wanted in (_ERROR, _WARNING):
            found = [said.strip() for level, said in self._lines if level == wanted]
            if found:
                return "llama.cpp says: " + " / ".join(dict.fromkeys(found[-3:]))
        return "llama.cpp gave no reason"


_LOG = _Log()
listen = _LOG.listen
recent = _LOG.recent
