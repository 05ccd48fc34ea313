"""What is found out about weights on this machine, once, and remembered: costs, row classes, the known answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from .. import backends
from ..runtime.encoder_input import prepare
from ..runtime.errors import UnsupportedModelError
from ..runtime.files.bundle import cache_dir, read_json, write_json_atomically
from ..runtime.files.made_elsewhere import MadeElsewhere
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import Weights
from ..runtime.profiling.calibrate import Calibration, calibrate
from ..runtime.profiling.canary import TEXT, Canary, make_canary
from ..runtime.profiling.cost_curve import CostCurve, facts_key, slower_than_wider
from ..runtime.profiling.row_classes import RowClasses, widest_of
from ..runtime.progress import Progress
from ..runtime.sampling.finite import require_finite
from . import cpu_load
from .broken_weights import naming
from .opening import Place, open_weights
from .vocabulary import read_tokenizer

_TOKENS = 12  # steps of which a draft's fastest counts
_JUDGED = (("gguf",), ("safetensors",))  # what the reference engine opens as it is


def calibration(weights: Weights, report: Progress) -> Calibration:
    """Costs and row classes of these weights here: as remembered, or measured now.

    Only what can be relied on is remembered; the rest serves this once, and the next load measures again.
    """
    known = _known(weights)
    if known is not None:
        return known
    share = cpu_load.cpu_load()
    what = f"measuring this machine{busy_note(share)}"
    report(what, 0.0)
    session, others = weights.session(min(weights.info.context_length, 256)), cpu_load.Others()
    try:
        measured = calibrate(session)
        measured = replace(measured, busy=max(share, others.share()))
    finally:
        session.close()
    report(what, 1.0)
    about = {
        "classes": [list(c) for c in measured.rows.classes],
        "busy": measured.busy,
        "measured_on": time.strftime("%F"),
    }
    _keep(_facts_path(weights), {**measured.curve.to_facts(), **about}, doubt(measured.curve.measured, measured.busy))
    return measured


def narrow_steps(weights: Weights, measured: Calibration) -> bool:
    """Whether steps where a text repeats nothing are one row wide: decided once for these weights here, and kept even
    if what was measured is not, since the last bits of the answers depend on it."""
    kept = cache_dir() / "steps" / f"{facts_key(weights.info)}.json"
    facts = read_json(kept)
    if isinstance(facts, dict) and isinstance(facts.get("narrow"), bool):
        return bool(facts["narrow"])
    write_json_atomically(kept, {"narrow": measured.narrow_pays, "price": measured.price_of_exactness})
    return measured.narrow_pays


def token_seconds(weights: Weights, report: Progress) -> float:
    """Seconds of a step of one token, which is all that is asked of a draft: as remembered, or measured now."""
    known, kept = _known(weights), _facts_path(weights).with_suffix(".token.json")
    if known is not None:
        return known.curve.seconds(1)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        facts = read_json(kept)
        if not cpu_load.disturbed(float(facts["busy"])):  # type: ignore[index]
            return float(facts["token_s"])  # type: ignore[index]
    share = cpu_load.cpu_load()
    what = f"timing the draft{busy_note(share)}"
    report(what, 0.0)
    session, others = weights.session(min(weights.info.context_length, 64)), cpu_load.Others()
    try:
        prepare(session)
        times = []
        for token in range(_TOKENS):
            began = time.perf_counter()
            step = session.forward(np.array([token % weights.info.vocab_size]), n_logits=1)
            times.append(time.perf_counter() - began)
            require_finite(step.logits, weights.info)
        seconds = min(times)  # a first step is slower, and so is one beside another program's
    finally:
        session.close()
    report(what, 1.0)
    share = max(share, others.share())
    _keep(kept, {"token_s": seconds, "busy": share}, doubt({1: seconds}, share))
    return seconds


def doubt(step_s: Mapping[int, float], share: float) -> str:
    """Why times are not to be relied on, in words; empty where they are.

    step_s: seconds of a step by rows; share: of the processor that other programs used meanwhile. A container may not
    be told what they use, and a curve that no kernel has shows it all the same.
    """
    if cpu_load.disturbed(share):
        return f"other programs used {share:.0%} of the processor meanwhile"
    slow = slower_than_wider(step_s)
    return f"a step of {slow[0]} rows took clearly longer than one of more rows" if slow else ""


def busy_note(share: float) -> str:
    """What is added to the name of a measurement that is not going to be kept."""
    return " while it is busy; again next time" if cpu_load.disturbed(share) else ""


def _keep(path: Path, facts: dict[str, object], doubt: str) -> None:
    """Remember facts that nobody doubts, and forget what was there before in any case."""
    if not doubt:
        write_json_atomically(path, facts)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _known(weights: Weights) -> Calibration | None:
    """What is remembered and can be relied on: earlier versions kept whatever they measured."""
    facts = read_json(_facts_path(weights))
    if not isinstance(facts, dict):
        return None
    try:
        classes = tuple(tuple(int(w) for w in c) for c in facts["classes"])
        rows = RowClasses(classes, weights.info.widths, widest_of(weights.info))
        known = Calibration(CostCurve.from_facts(facts), rows, float(facts["busy"]))
    except (KeyError, TypeError, ValueError):
        return None  # damaged, or of an older version: measured again
    return None if doubt(known.curve.measured, known.busy) else known


def known_answer(model: ModelFile, report: Progress) -> Canary | None:
    """The canary that a model brings, or what the reference engine answers to it, which is computed once.

    Where the reference engine does not know the architecture or the format, an engine that runs the file as it is
    answers, in a plainer way than its sessions do; None where there is none, and where a bundle brings none. Raises
    EngineError for weights that have no answer, as some of them are not numbers.
    """
    elsewhere = isinstance(model, MadeElsewhere)
    if model.canary is not None or (model.formats not in _JUDGED and not elsewhere):
        return model.canary
    kept = cache_dir() / "canaries" / f"{model.digest[:16]}.json"
    with contextlib.suppress(ValidationError):
        return Canary.model_validate(read_json(kept))
    if elsewhere:
        return _own_answer(model, kept, report)
    report("asking the reference engine for a known answer", 0.0)
    place = Place(backends.get(backends.JUDGE), None, 1, options={"stream": True})
    try:
        weights, _ = open_weights(model, place, report)
    except UnsupportedModelError:
        if "gguf" not in model.formats:
            raise
        return backends.own_answer(model)
    try:
        session = weights.session(min(weights.info.context_length, 64))
        with naming(model), np.errstate(all="ignore"):
            canary = make_canary(session, read_tokenizer(model).encode(TEXT))
        session.close()
    finally:
        weights.close()
    write_json_atomically(kept, canary.model_dump())
    report("asking the reference engine for a known answer", 1.0)
    return canary


def _own_answer(model: ModelFile, kept: Path, report: Progress) -> Canary | None:
    """What an engine answers that runs the graph as it is; remembered at `kept`."""
    report("asking the graph itself for a known answer", 0.0)
    canary = backends.own_answer(model)
    if canary is not None:
        write_json_atomically(kept, canary.model_dump())
    report("asking the graph itself for a known answer", 1.0)
    return canary


def _facts_path(weights: Weights) -> Path:
    return cache_dir() / "costs" / f"{facts_key(weights.info)}.json"
