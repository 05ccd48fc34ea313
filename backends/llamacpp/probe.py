"""Whether a build of llama.cpp survives on this processor: tried once in a process of its own, and remembered.

A build for another processor ends the process with an illegal instruction, some only at steps of 8 rows and more of
quantized weights. So each build computes such steps somewhere else first (probe_process.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...runtime.storage import cache_dir, file_digest, read_json, write_json_atomically
from .library import shared_libraries, version

TRIAL = (sys.executable, "-m", f"{__package__}.probe_process")
REPACKED, PLAIN = "repacked", "plain"  # what a trial is asked to compute with
_TIMEOUT_S = 120
_known: dict[str, Verdict] = {}  # of this process, where the cache folder cannot be written


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about a build on this processor."""

    usable: bool
    extra_buffers: bool  # with weights repacked for faster kernels, too
    how: str  # sentences for a person
    system_info: str  # what the build says it uses of the processor
    build: str  # digest of its libraries

    def facts(self) -> dict[str, str]:
        """As plain data, for a report."""
        verdict = "works" if self.extra_buffers else "works without repacked weights" if self.usable else "dies"
        return {"verdict": verdict, "how": self.how, "system_info": self.system_info, "build": self.build}


@dataclass(frozen=True, slots=True)
class _Probe:
    survived: bool
    certain: bool  # it would end like this again
    how: str
    system_info: str = ""


def build_verdict(trial: Sequence[str] = TRIAL) -> Verdict:
    """The verdict on the installed build, as remembered or found now, in about a second.

    trial: the command that computes; it gets REPACKED or PLAIN and a folder to write into as last arguments.
    """
    build = _build()
    key = hashlib.sha256("\n".join((build, _processor(), *trial)).encode()).hexdigest()[:32]
    path = cache_dir() / "builds" / f"llamacpp-{key}.json"
    known = _known.get(key) or _remembered(path)
    if known is not None:
        return known
    verdict, certain = _judge(trial, build)
    if certain:
        _known[key] = verdict
        write_json_atomically(path, asdict(verdict))
    return verdict


def _judge(trial: Sequence[str], build: str) -> tuple[Verdict, bool]:
    """The verdict, and whether it would be the same again."""
    repacked = _try(trial, REPACKED)
    if repacked.survived:
        how = "Computed steps of 1 to 64 rows with six types of quantized weights in a process of its own."
        return Verdict(True, True, how, repacked.system_info, build), True
    plain = _try(trial, PLAIN)
    if plain.survived:
        how = f"With repacked weights a process of its own {repacked.how}; without them it computed the same steps."
        return Verdict(True, False, how, plain.system_info, build), repacked.certain
    how = f"This build of llama.cpp does not run on this processor: a process of its own {plain.how}."
    return Verdict(False, False, how, "", build), repacked.certain and plain.certain


def _try(trial: Sequence[str], mode: str) -> _Probe:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            done = subprocess.run(
                [*trial, mode, folder],
                capture_output=True,
                check=False,
                timeout=_TIMEOUT_S,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return _Probe(False, False, f"did not finish within {_TIMEOUT_S} seconds")
        except OSError as error:
            return _Probe(False, False, f"could not be started ({error})")
    if done.returncode:
        return _Probe(False, _died(done.returncode), ended(done.returncode, done.stderr))
    try:
        found = json.loads(done.stdout)
        return _Probe(True, True, "", str(found["system_info"]))
    except (ValueError, KeyError, TypeError):
        return _Probe(False, False, "gave no answer")


def ended(code: int, stderr: bytes) -> str:
    """How a process ended, in words that follow "a process"."""
    if _died(code):
        return _signal(code)
    said = stderr.decode("utf-8", "replace").strip().splitlines()
    return f"failed: {said[-1] if said else code}"


def _died(code: int) -> bool:
    return code < 0 or code >= 0xC0000000  # by a signal, or by an exception of Windows


def _signal(code: int) -> str:
    if code in (-getattr(signal, "SIGILL", 4), 0xC000001D):
        return "died of an illegal instruction"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died with code {code:#x}"


def _build() -> str:
    parts = [f"{path.name} {file_digest(path)}" for path in shared_libraries()]
    return hashlib.sha256("\n".join((str(version()), *parts)).encode()).hexdigest()


def _processor() -> str:
    """What decides which instructions there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _remembered(path: Path) -> Verdict | None:
    facts = read_json(path)
    if not isinstance(facts, dict) or set(facts) != {field.name for field in fields(Verdict)}:
        return None
    flags = [facts["usable"], facts["extra_buffers"]]
    texts = [facts["how"], facts["system_info"], facts["build"]]
    sound = all(isinstance(x, bool) for x in flags) and all(isinstance(x, str) for x in texts)
    return Verdict(**facts) if sound else None
