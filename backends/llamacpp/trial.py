"""Files that are not checked here to the last tensor: tried in a process of their own, and what was found remembered.

llama.cpp ends the process over some damaged files and over some operations that a model cannot do. So another process
opens the file first and does with it whatever sessions do (trial_process.py). If it dies of one operation, the next
one leaves that out; if it dies of loading or of plain steps, the file is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ...runtime.errors import EngineError, ModelFileError, PilotfishError, UnsupportedModelError
from ...runtime.files.gguf_parts import gguf_digest
from ...runtime.storage import cache_dir, read_json, write_json_atomically
from .findings import Findings
from .probe import Verdict, ended

TRIAL = (sys.executable, "-m", f"{__package__}.trial_process")
LOADING, STEPPING = "loading it", "computing its first steps"  # without these no model can be used
_TIMEOUT_S = 3600  # the file may be larger than the memory
_REASONS: Mapping[str, type[PilotfishError]] = {
    error.__name__: error for error in (ModelFileError, UnsupportedModelError, EngineError)
}


class Request(BaseModel):
    """What the process is asked: the file, and how the model is to be opened. left_out: stages that ended another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    device: str
    kv_dtype: str | None
    options: dict[str, Any]
    repacked: bool
    left_out: tuple[str, ...] = ()


def findings_of(request: Request, verdict: Verdict, trial: Sequence[str] = TRIAL) -> Findings:
    """What the engine can do with a file opened so, as remembered or found now.

    Raises what the file is refused with: ModelFileError, UnsupportedModelError; EngineError where there is no answer.
    """
    known = remembered(request, verdict)
    if known is not None:
        return known
    found = _tried(request, trial)
    write_json_atomically(_kept(request, verdict), found.model_dump(mode="json"))
    return found


def remembered(request: Request, verdict: Verdict) -> Findings | None:
    """What was found before; None where nothing was, or another build did."""
    try:
        return Findings.model_validate(read_json(_kept(request, verdict)))
    except ValidationError:
        return None


def _kept(request: Request, verdict: Verdict) -> Path:
    settings = request.model_dump(mode="json", exclude={"path", "left_out"})
    about = json.dumps([settings, verdict.build, verdict.system_info], sort_keys=True)
    key = hashlib.sha256(about.encode()).hexdigest()[:16]
    return cache_dir() / "trials" / f"llamacpp-{gguf_digest(request.path)[:16]}-{key}.json"


def _tried(request: Request, trial: Sequence[str]) -> Findings:
    while True:
        answers, how = _answers(request, trial)
        last = answers[-1] if answers else {}
        if "findings" in last:
            return Findings.model_validate(last["findings"])
        if last.get("refused") in _REASONS:
            raise _REASONS[last["refused"]](str(last["why"]))
        stage = str(last.get("stage", LOADING))
        if stage in (LOADING, STEPPING) or stage in request.left_out:
            raise UnsupportedModelError(
                f"{request.path} was given to llama.cpp in a process of its own, which {how} while {stage}. Convert or "
                "fetch the model again, or install a newer llama-cpp-python."
            )
        request = request.model_copy(update={"left_out": (*request.left_out, stage)})


def _answers(request: Request, trial: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """What the process said, and how it ended."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            done = subprocess.run(
                list(trial),
                input=request.model_copy(update={"path": request.path.resolve()}).model_dump_json().encode(),
                capture_output=True,
                check=False,
                timeout=_TIMEOUT_S,
                cwd=folder,
                env=environment,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            raise EngineError(f"{request.path} could not be tried in a process of its own: {error}") from error
    answers = []
    for line in done.stdout.splitlines():
        try:
            answers.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue  # what a library prints
    return answers, ended(done.returncode, done.stderr)
