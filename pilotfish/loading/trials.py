"""How fast each engine was on this machine: measured once, kept, read again."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ..runtime.encoder_input import prepare, stand_in
from ..runtime.errors import DamagedWeightsError, OptionError, PilotfishError, PilotfishWarning, UnsupportedModelError
from ..runtime.files.bundle import cache_dir, read_json, write_json_atomically
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import Session
from ..runtime.profiling.calibrate import calibrate
from ..runtime.profiling.canary import WRONG, Canary, canary_error
from ..runtime.profiling.engine_trial import EngineTrial
from ..runtime.progress import Progress
from . import cpu_load
from .broken_weights import naming, require_numbers
from .measuring import busy_note, doubt, known_answer
from .opening import Place, open_weights
from .options import Wish

_WIDTHS = (1, 2, 4, 8)


_PROMPT = 64  # rows of the step that stands for prompt processing


_HOPELESS = 5.0  # a first step so many times slower than the best engine's is not measured further


_LASTING = (UnsupportedModelError, OptionError)  # a trial that ends so would end so again


class EngineTrials:
    """EngineTrials over one model: remembered by engine version, device and threads, or made now."""

    def __init__(self, model: ModelFile, wish: Wish, known: dict[str, EngineTrial]) -> None:
        self._model, self._wish, self._known = model, wish, known
        self._canary: Canary | None = None
        self._asked = False
        self._best_step = np.inf
        self._busy: float | None = None

    def run(self, place: Place, report: Progress) -> EngineTrial:
        """What this place does; raises DamagedWeightsError, but nothing for what the place cannot do."""
        version = place.backend.version() or ""
        device = place.device or place.backend.devices()[0]
        key = f"{place.backend.name}-{version}-{device}-{place.threads}"
        if key not in self._known:
            share = self._busy_now()
            what = f"trying {place.backend.name} on {device}, {place.threads} threads{busy_note(share)}"
            report(what, 0.0)
            head = (place.backend.name, version, device, place.threads)
            try:
                others = cpu_load.Others()
                with naming(self._model):
                    trial = self._measure(place, head, report)
                trial = replace(trial, busy=max(share, others.share()))
            except PilotfishError as error:
                if isinstance(error, DamagedWeightsError):
                    raise
                trial = EngineTrial(*head, step_s={}, problem=str(error))
                if not isinstance(error, _LASTING):
                    return trial  # a full memory may be empty another time
            if trial.canary_error is not None and trial.canary_error >= WRONG:
                require_numbers(self._model)
                warnings.warn(f"{trial} gave a wrong answer; left out", PilotfishWarning, stacklevel=3)
            self._known[key] = trial
            _write(_trials_path(self._model, self._wish), self._known)
            report(what, 1.0)
        trial = self._known[key]
        if trial.usable:
            self._best_step = min(self._best_step, trial.step_s[1])
        return trial

    def _busy_now(self) -> float:
        """Share of the processor that other programs use, asked once, while nothing of ours runs."""
        if self._busy is None:
            self._busy = cpu_load.cpu_load()
        return self._busy

    def _measure(self, place: Place, head: tuple[str, str, str, int], report: Progress) -> EngineTrial:
        if not self._asked:
            self._canary, self._asked = known_answer(self._model, report), True
        weights, _ = open_weights(self._model, place, report)
        try:
            session = weights.session(min(weights.info.context_length, 256))
            prepare(session)
            error = None if self._canary is None else canary_error(session, self._canary)
            step_s = _one_step(session)
            if error is not None and error >= WRONG:
                return EngineTrial(*head, step_s={1: step_s}, canary_error=error)
            if step_s > _HOPELESS * self._best_step:
                problem = f"a step takes {1e3 * step_s:.0f} ms, more than {_HOPELESS:.0f} times the best one"
                return EngineTrial(*head, step_s={1: step_s}, canary_error=error, problem=problem)
            measured = calibrate(session, _WIDTHS)
            steps = {w: measured.curve.seconds(w) for w in _WIDTHS if w <= int(measured.curve.widths[-1])}
            switch_s = measured.curve.switch
            able = tuple(sorted(session.abilities))
            return EngineTrial(
                *head, steps, _prefill_s(session), switch_s, measured.rows.classes, error, abilities=able
            )
        finally:
            weights.close()


def _one_step(session: Session) -> float:
    """Seconds of the second of two one-row steps; the first is slower."""
    token = np.zeros(1, dtype=np.int64)
    session.forward(token, n_logits=1)
    began = time.perf_counter()
    session.forward(token, n_logits=1)
    seconds = time.perf_counter() - began
    session.truncate(0)
    return seconds


def _prefill_s(session: Session) -> float:
    """Seconds per token of prompt processing, the better of two."""
    tokens = np.arange(min(_PROMPT, session.max_context), dtype=np.int64) % session.info.vocab_size
    source = stand_in(session.info)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        if source is None:
            session.forward(tokens, n_logits=0)
        else:  # the encoder is the prompt processing
            session.encode(source)
        times.append(time.perf_counter() - began)
        session.truncate(0)
    return min(times) / (len(tokens) if source is None else source.shape[-1])


def _trials_path(model: ModelFile, wish: Wish) -> Path:
    name = model.digest[:16]
    if wish.kv_dtype is not None or wish.options:
        settings = json.dumps([wish.kv_dtype, sorted((k, str(v)) for k, v in wish.options.items())])
        name += "-" + hashlib.sha256(settings.encode()).hexdigest()[:8]
    return cache_dir() / "trials" / f"{name}.json"


def _read(path: Path) -> dict[str, EngineTrial]:
    kept, found = read_json(path), {}
    for key, row in kept.items() if isinstance(kept, dict) else ():
        try:
            steps = {int(w): float(s) for w, s in row["step_s"].items()}
            classes = tuple(tuple(int(w) for w in c) for c in row["classes"])
            abilities = tuple(row["abilities"])
            trial = EngineTrial(**{**row, "step_s": steps, "classes": classes, "abilities": abilities})
            if not doubt_of(trial):  # earlier versions kept whatever they measured
                found[key] = trial
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged, or of another version: tried again
    return found


def _write(path: Path, trials: dict[str, EngineTrial]) -> None:
    write_json_atomically(path, {key: asdict(trial) for key, trial in trials.items() if not doubt_of(trial)})


def doubt_of(trial: EngineTrial) -> str:
    """Why a trial is not remembered and made again by the next load, in words; empty where it is."""
    return doubt(trial.step_s, trial.busy) if trial.step_s else ""  # what was not timed ends so every time
