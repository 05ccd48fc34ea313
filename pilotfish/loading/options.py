"""What is asked of whichever engine answers, and what of it no engine here has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .. import backends
from ..backends.protocol import Backend
from ..runtime.cache.compressed_copy import missing_for_copies
from ..runtime.cache.compression import missing_abilities
from ..runtime.cache.policies import CachePolicy
from ..runtime.checks import shown, whole
from ..runtime.errors import EngineMissingError, OptionError
from ..runtime.interfaces import Ability
from ..runtime.profiling.engine_trial import Job


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user left open (None) and what not."""

    engine: str | None = None
    device: str | None = None
    threads: int | None = None
    kv_dtype: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    job: Job = field(default_factory=Job)
    exact: bool = True
    cache: CachePolicy | None = None
    copied: CachePolicy | None = None  # compresses a copy beside the full cache

    def __post_init__(self) -> None:
        for name in ("engine", "device", "kv_dtype"):
            if getattr(self, name) == "":
                raise OptionError(f"{name} is empty; name one, or leave it out.")
        if self.threads is not None:
            n_cores = os.cpu_count() or 1
            whole("threads", self.threads, 1, n_cores, hint=f"this machine runs {n_cores} at a time")

    def with_environment(self) -> Wish:
        """PILOTFISH_ENGINE and PILOTFISH_THREADS fill in what the call leaves open; empty, they say nothing."""
        engine, threads = os.environ.get("PILOTFISH_ENGINE"), os.environ.get("PILOTFISH_THREADS")
        if threads and not (threads.isascii() and threads.isdecimal() and len(threads) < 10 and int(threads) > 0):
            raise OptionError(f"PILOTFISH_THREADS is {shown(threads)}, but must be a number from 1 on.")
        return replace(
            self,
            engine=(engine or None) if self.engine is None else self.engine,
            threads=(int(threads) if threads else None) if self.threads is None else self.threads,
        )

    def lacks(self, abilities: tuple[Ability, ...]) -> str:
        """What an engine with these abilities cannot carry out of the wish, in words; empty where it can."""
        has, problems = frozenset(abilities), []
        if self.cache is not None and (missing := missing_abilities(self.cache, has)):
            problems.append(f"the {self.cache.name} cache policy needs {', '.join(sorted(missing))}")
        if self.copied is not None and (missing := missing_for_copies(self.copied, has)):
            problems.append(f"a copy compressed by {self.copied.name} needs {', '.join(sorted(missing))}")
        return "; ".join(problems)


def refuse_impossible(wish: Wish) -> None:
    """Raise OptionError for a device, type or setting that no engine has here, EngineMissingError for a named engine
    that is not installed: what can be known before a model is looked for."""
    if wish.engine is not None:
        backends.check_settings(backends.installed(wish.engine), wish.device, wish.kv_dtype, wish.options)
        return
    if wish.device is None and wish.kv_dtype is None and not wish.options:
        return
    problems = []
    for backend in _installed():
        try:
            backends.check_settings(backend, wish.device, wish.kv_dtype, wish.options)
            if wish.device is None or wish.device in backend.devices():
                return
        except OptionError as error:
            problems.append(str(error))
    known = wish.device is None or any(wish.device in backend.devices() for backend in _installed())
    said = "" if known else f"no installed engine has a device {wish.device!r}. Devices here: {device_list()}. "
    if said or problems:
        raise OptionError(said + " ".join(problems))


def device_list() -> str:
    """The devices of every engine that is tried, for a message."""
    return "; ".join(f"{b.name}: {', '.join(b.devices())}" for b in _installed())


def _installed() -> list[Backend]:
    """Engines that are tried where none is named."""
    found = []
    for name in backends.names():
        with contextlib.suppress(EngineMissingError):  # another package's, which cannot be imported
            backend = backends.get(name)
            if backend.name != backends.JUDGE and backend.version() is not None:
                found.append(backend)
    return found
