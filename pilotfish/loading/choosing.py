"""Which engine, device and number of threads answer: every candidate is tried briefly and, on a quiet machine, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psutil

from .. import backends
from ..runtime.errors import (
    EngineError,
    EngineMissingError,
    OptionError,
    PilotfishError,
    UnsupportedModelError,
)
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import Weights
from ..runtime.profiling.canary import WRONG, Canary, canary_error
from ..runtime.profiling.engine_trial import Choice, EngineTrial
from ..runtime.progress import Progress
from .broken_weights import require_numbers
from .measuring import known_answer
from .opening import Place, open_weights, usable_cores
from .options import Wish, device_list, refuse_impossible
from .trials import EngineTrials, _read, _trials_path

__all__ = ["Wish", "choose", "first_threads", "open_first_right", "refuse_impossible"]


def choose(model: ModelFile, wish: Wish, report: Progress, *, again: bool = False) -> tuple[list[Place], Choice]:
    """Where to run a model, the best place first, and the trials that say so.

    Where nothing is left open nothing is tried. again: try everything anew, whatever is remembered.
    Raises EngineMissingError, UnsupportedModelError and OptionError where there is no place at all.
    """
    places = candidates(model, wish)
    if len(places) == 1 and wish.threads is not None:
        return places, Choice.of([], wish.job, wish.exact)
    trials = EngineTrials(model, wish, {} if again else _read(_trials_path(model, wish)))
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
        said = {t.problem or "gave a wrong answer" for t in choice.trials}
        if len(said) == 1:
            raise UnsupportedModelError(f"no engine here can run {model}: {said.pop()}")
        reasons = "; ".join(f"{t}: {t.problem or 'gave a wrong answer'}" for t in choice.trials)
        raise UnsupportedModelError(f"no engine here can run {model}. {reasons}")
    return found, choice


def _able(done: list[tuple[Place, EngineTrial]], wish: Wish) -> list[tuple[Place, EngineTrial]]:
    """The trials, with what is wrong with those that cannot do what is wished; if none can, the model will say why."""
    judged = [(p, replace(t, problem=wish.lacks(t.abilities)) if t.usable else t) for p, t in done]
    return judged if any(t.usable for _, t in judged) else done


def candidates(model: ModelFile, wish: Wish) -> list[Place]:
    """Every engine and device that may be meant, in the order in which engines are tried."""
    threads = wish.threads or first_threads()
    one, device = wish.engine, wish.device
    found = [backends.named(model, one, device)] if one else backends.openers(model, device)
    places = []
    for backend in found:
        if wish.device is None:
            devices = backends.automatic(backend) or backend.devices()[:1]
        else:
            devices = (wish.device,) if wish.engine or wish.device in backend.devices() else ()
        places += [Place(backend, device, threads, wish.kv_dtype, wish.options) for device in devices]
    if not places and wish.device is not None:
        raise OptionError(f"no engine opens {model} on {wish.device!r}. Devices here: {device_list()}.")
    if not places:
        raise EngineMissingError(f"no engine here opens {model}; `pilotfish doctor` shows what can be added.")
    return places


def first_threads() -> int:
    """One thread for every core that this process may use, where two hardware threads share a core."""
    return max(1, min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores()))


def _other_threads(first: int) -> list[int]:
    return sorted({max(1, first // 2), usable_cores()} - {first})


def open_first_right(
    model: ModelFile, places: Sequence[Place], report: Progress
) -> tuple[Weights, ModelFile, Place, tuple[str, ...]]:
    """Weights at the first of these places that gives the known answer; the model file that was opened; the place;
    and what was wrong with those before it.

    Raises the last place's own error, or EngineError for its wrong answer, where none is right.
    """
    canary, notes = known_answer(model, report), []
    for i, place in enumerate(places):
        is_last = i == len(places) - 1
        name = f"{place.backend.name} on {place.device or place.backend.devices()[0]}"
        try:
            weights, opened = open_weights(model, place, report)
        except PilotfishError as error:
            if is_last:
                raise
            notes.append(f"{name} failed: {error}")
            continue
        try:
            error_share = 0.0 if canary is None else _ask(weights, canary)
            if error_share < WRONG:
                return weights, opened, place, tuple(notes)
            notes.append(f"{name} gave a wrong answer to a known question (error {error_share:.2f}, at most {WRONG})")
        except BaseException:
            weights.close()
            raise
        weights.close()
    require_numbers(model)
    raise EngineError(f"{'; '.join(notes)}. Choose another engine or device, or update this one's driver.")


def _ask(weights: Weights, canary: Canary) -> float:
    session = weights.session(min(weights.info.context_length, 64))
    try:
        return canary_error(session, canary)
    finally:
        session.close()
