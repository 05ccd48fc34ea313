"""Which engine, device and number of threads answer: every candidate is tried briefly and, on a quiet machine, once."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil

from . import backends, busy
from .broken_weights import naming, require_numbers
from .measuring import busy_note, doubt, known_answer, source_digest
from .opening import Place, Progress, open_weights, usable_cores
from .runtime.bundle import cache_dir, read_json, write_json_atomically
from .runtime.canary import WRONG, Canary, canary_error
from .runtime.choice import Choice, Trial
from .runtime.cost import calibrate
from .runtime.errors import (
    DamagedWeightsError,
    EngineError,
    EngineMissingError,
    OptionError,
    PilotfishError,
    PilotfishWarning,
    UnsupportedModelError,
)
from .runtime.interfaces import Session, Weights
from .runtime.source import prepare, stand_in
from .wish import Wish, device_list, refuse_impossible

__all__ = ["Wish", "choose", "first_threads", "open_first_right", "refuse_impossible"]

_WIDTHS = (1, 2, 4, 8)
_PROMPT = 64  # rows of the step that stands for prompt processing
_HOPELESS = 5.0  # a first step so many times slower than the best engine's is not measured further
_LASTING = (UnsupportedModelError, OptionError)  # a trial that ends so would end so again


def choose(path: Path, wish: Wish, report: Progress, *, again: bool = False) -> tuple[list[Place], Choice]:
    """Where to run the model at a path, the best place first, and the trials that say so.

    Where nothing is left open nothing is tried. again: try everything anew, whatever is remembered.
    Raises EngineMissingError, UnsupportedModelError and OptionError where there is no place at all.
    """
    places = candidates(path, wish)
    if len(places) == 1 and wish.threads is not None:
        return places, Choice.of([], wish.job, wish.exact)
    trials = Trials(path, wish, {} if again else _read(_trials_path(path, wish)))
    done = _able([(place, trials.run(place, report)) for place in places], wish)
    usable = [(p, t) for p, t in done if t.usable]
    if wish.threads is None and usable:
        best = min(usable, key=lambda x: x[1].seconds(wish.job, wish.exact))[0]
        for threads in _other_threads(best.threads):
            place = Place(best.backend, best.device, threads, wish.kv_dtype, wish.options)
            done.append((place, trials.run(place, report)))
    choice = Choice.of([t for _, t in done], wish.job, wish.exact)
    order = {id(t): i for i, t in enumerate(choice.trials)}
    done.sort(key=lambda x: order[id(x[1])])
    found = [place for place, trial in done if trial.usable]
    if not found:
        reasons = "; ".join(f"{t}: {t.problem or 'gave a wrong answer'}" for t in choice.trials)
        raise UnsupportedModelError(f"no engine here can run {path}. {reasons}")
    return found, choice


def _able(done: list[tuple[Place, Trial]], wish: Wish) -> list[tuple[Place, Trial]]:
    """The trials, with what is wrong with those that cannot do what is wished; if none can, the model will say why."""
    judged = [(p, replace(t, problem=wish.lacks(t.abilities)) if t.usable else t) for p, t in done]
    return judged if any(t.usable for _, t in judged) else done


def candidates(path: Path, wish: Wish) -> list[Place]:
    """Every engine and device that may be meant, in the order in which engines are tried."""
    threads = wish.threads or first_threads()
    one, device = wish.engine, wish.device
    found = [backends.named(path, one, device)] if one else backends.openers(path, device)
    places = []
    for backend in found:
        if wish.device is None:
            devices = backends.automatic(backend) or backend.devices()[:1]
        else:
            devices = (wish.device,) if wish.engine or wish.device in backend.devices() else ()
        places += [Place(backend, device, threads, wish.kv_dtype, wish.options) for device in devices]
    if not places and wish.device is not None:
        raise OptionError(f"no engine opens {path} on {wish.device!r}. Devices here: {device_list()}.")
    if not places:
        raise EngineMissingError(f"no engine here opens {path}; `pilotfish doctor` shows what can be added.")
    return places


class Trials:
    """Trials over one model: remembered by engine version, device and threads, or made now."""

    def __init__(self, path: Path, wish: Wish, known: dict[str, Trial]) -> None:
        self._path, self._wish, self._known = path, wish, known
        self._canary: Canary | None = None
        self._asked = False
        self._best_step = np.inf
        self._busy: float | None = None

    def run(self, place: Place, report: Progress) -> Trial:
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
                others = busy.Others()
                with naming(self._path):
                    trial = self._measure(place, head, report)
                trial = replace(trial, busy=max(share, others.share()))
            except PilotfishError as error:
                if isinstance(error, DamagedWeightsError):
                    raise
                trial = Trial(*head, step_s={}, problem=str(error))
                if not isinstance(error, _LASTING):
                    return trial  # a full memory may be empty another time
            if trial.canary_error is not None and trial.canary_error >= WRONG:
                require_numbers(self._path)
                warnings.warn(f"{trial} gave a wrong answer; left out", PilotfishWarning, stacklevel=3)
            self._known[key] = trial
            _write(_trials_path(self._path, self._wish), self._known)
            report(what, 1.0)
        trial = self._known[key]
        if trial.usable:
            self._best_step = min(self._best_step, trial.step_s[1])
        return trial

    def _busy_now(self) -> float:
        """Share of the processor that other programs use, asked once, while nothing of ours runs."""
        if self._busy is None:
            self._busy = busy.busy_share()
        return self._busy

    def _measure(self, place: Place, head: tuple[str, str, str, int], report: Progress) -> Trial:
        if not self._asked:
            self._canary, self._asked = known_answer(self._path, report), True
        weights, _ = open_weights(self._path, place, report)
        try:
            session = weights.session(min(weights.info.context_length, 256))
            prepare(session)
            error = None if self._canary is None else canary_error(session, self._canary)
            step_s = _one_step(session)
            if error is not None and error >= WRONG:
                return Trial(*head, step_s={1: step_s}, canary_error=error)
            if step_s > _HOPELESS * self._best_step:
                problem = f"a step takes {1e3 * step_s:.0f} ms, more than {_HOPELESS:.0f} times the best one"
                return Trial(*head, step_s={1: step_s}, canary_error=error, problem=problem)
            measured = calibrate(session, _WIDTHS)
            steps = {w: measured.curve.seconds(w) for w in _WIDTHS if w <= int(measured.curve.widths[-1])}
            switch_s = measured.curve.switch
            able = tuple(sorted(session.abilities))
            return Trial(*head, steps, _prefill_s(session), switch_s, measured.rows.classes, error, abilities=able)
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


def first_threads() -> int:
    """One thread for every core that this process may use, where two hardware threads share a core."""
    return max(1, min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores()))


def _other_threads(first: int) -> list[int]:
    return sorted({max(1, first // 2), usable_cores()} - {first})


def _trials_path(path: Path, wish: Wish) -> Path:
    name = source_digest(path)[:16]
    if wish.kv_dtype is not None or wish.options:
        settings = json.dumps([wish.kv_dtype, sorted((k, str(v)) for k, v in wish.options.items())])
        name += "-" + hashlib.sha256(settings.encode()).hexdigest()[:8]
    return cache_dir() / "trials" / f"{name}.json"


def doubt_of(trial: Trial) -> str:
    """Why a trial is not remembered and made again by the next load, in words; empty where it is."""
    return doubt(trial.step_s, trial.busy) if trial.step_s else ""  # what was not timed ends so every time


def _read(path: Path) -> dict[str, Trial]:
    kept, found = read_json(path), {}
    for key, row in kept.items() if isinstance(kept, dict) else ():
        try:
            steps = {int(w): float(s) for w, s in row["step_s"].items()}
            classes = tuple(tuple(int(w) for w in c) for c in row["classes"])
            abilities = tuple(row["abilities"])
            trial = Trial(**{**row, "step_s": steps, "classes": classes, "abilities": abilities})
            if not doubt_of(trial):  # earlier versions kept whatever they measured
                found[key] = trial
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged, or of another version: tried again
    return found


def _write(path: Path, trials: dict[str, Trial]) -> None:
    write_json_atomically(path, {key: asdict(trial) for key, trial in trials.items() if not doubt_of(trial)})


def open_first_right(
    path: Path, places: Sequence[Place], report: Progress
) -> tuple[Weights, Path, Place, tuple[str, ...]]:
    """Weights at the first of these places that gives the known answer; the file or folder that was opened; the place;
    and what was wrong with those before it.

    Raises the last place's own error, or EngineError for its wrong answer, where none is right.
    """
    canary, notes = known_answer(path, report), []
    for i, place in enumerate(places):
        is_last = i == len(places) - 1
        name = f"{place.backend.name} on {place.device or place.backend.devices()[0]}"
        try:
            weights, location = open_weights(path, place, report)
        except PilotfishError as error:
            if is_last:
                raise
            notes.append(f"{name} failed: {error}")
            continue
        try:
            error_share = 0.0 if canary is None else _ask(weights, canary)
            if error_share < WRONG:
                return weights, location, place, tuple(notes)
            notes.append(f"{name} gave a wrong answer to a known question (error {error_share:.2f}, at most {WRONG})")
        except BaseException:
            weights.close()
            raise
        weights.close()
    require_numbers(path)
    raise EngineError(f"{'; '.join(notes)}. Choose another engine or device, or update this one's driver.")


def _ask(weights: Weights, canary: Canary) -> float:
    session = weights.session(min(weights.info.context_length, 64))
    try:
        return canary_error(session, canary)
    finally:
        session.close()
