"""What is found out about weights on this machine, once, and remembered: costs, row classes, the known answer."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from . import backends, busy
from .broken_weights import naming
from .opening import Place, Progress, open_weights, read_tokenizer
from .runtime.bundle import MANIFEST_NAME, cache_dir, open_bundle, read_json, write_json_atomically
from .runtime.canary import TEXT, Canary, make_canary
from .runtime.cost import Calibration, CostCurve, calibrate, facts_key
from .runtime.errors import UnsupportedModelError
from .runtime.finite import require_finite
from .runtime.interfaces import Weights
from .runtime.rows import RowClasses
from .runtime.source import prepare
from .runtime.storage import file_digest

_TOKENS = 12  # steps of which a draft's fastest counts


def calibration(weights: Weights, report: Progress) -> Calibration:
    """Costs and row classes of these weights here: as remembered, or measured now and remembered.

    What was measured while other programs were busy is measured again once it is quiet.
    """
    known, share = _known(weights), None
    if known is not None and busy.disturbed(known.busy):
        share = busy.busy_share()
    if known is not None and (share is None or not busy.quiet(share)):
        return known
    share = busy.busy_share() if share is None else share
    report("measuring this machine", 0.0)
    session, others = weights.session(min(weights.info.context_length, 256)), busy.Others()
    try:
        measured = calibrate(session)
        measured = replace(measured, busy=max(share, others.share()))
    finally:
        session.close()
    report("measuring this machine", 1.0)
    about = {
        "classes": [list(c) for c in measured.rows.classes],
        "busy": measured.busy,
        "measured_on": time.strftime("%F"),
    }
    write_json_atomically(_facts_path(weights), {**measured.curve.to_facts(), **about})
    return measured


def token_seconds(weights: Weights, report: Progress) -> float:
    """Seconds of a step of one token, which is all that is asked of a draft: as remembered, or measured now."""
    known, kept = _known(weights), _facts_path(weights).with_suffix(".token.json")
    if known is not None:
        return known.curve.seconds(1)
    facts, share = read_json(kept), None
    if isinstance(facts, dict) and isinstance(facts.get("token_s"), float):
        share = busy.busy_share() if busy.disturbed(facts.get("busy", 1.0)) else None
        if share is None or not busy.quiet(share):
            return float(facts["token_s"])
    share = busy.busy_share() if share is None else share
    report("timing the draft", 0.0)
    session, others = weights.session(min(weights.info.context_length, 64)), busy.Others()
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
    report("timing the draft", 1.0)
    write_json_atomically(kept, {"token_s": seconds, "busy": max(share, others.share())})
    return seconds


def _known(weights: Weights) -> Calibration | None:
    facts = read_json(_facts_path(weights))
    if not isinstance(facts, dict):
        return None
    try:
        classes = tuple(tuple(int(w) for w in c) for c in facts["classes"])
        rows = RowClasses(classes, weights.info.widths)
        return Calibration(CostCurve.from_facts(facts), rows, float(facts["busy"]))
    except (KeyError, TypeError, ValueError):
        return None  # damaged, or of an older version: measured again


def known_answer(path: Path, report: Progress) -> Canary | None:
    """The canary of a bundle, or of a .gguf file as the reference engine answers it, which is computed once.

    None where a bundle has none and where the reference engine does not know the architecture. Raises EngineError for
    weights that have no answer, as some of them are not numbers.
    """
    if path.is_dir():
        return open_bundle(path).manifest.canary
    kept = cache_dir() / "canaries" / f"{source_digest(path)[:16]}.json"
    with contextlib.suppress(ValidationError):
        return Canary.model_validate(read_json(kept))
    report("asking the reference engine for a known answer", 0.0)
    tokenizer, _ = read_tokenizer(path)
    place = Place(backends.get("reference"), None, 1, options={"stream": True})
    try:
        weights, _ = open_weights(path, place, report)
    except UnsupportedModelError:
        return None
    try:
        session = weights.session(min(weights.info.context_length, 64))
        with naming(path), np.errstate(all="ignore"):
            canary = make_canary(session, tokenizer.encode(TEXT))
        session.close()
    finally:
        weights.close()
    write_json_atomically(kept, canary.model_dump())
    report("asking the reference engine for a known answer", 1.0)
    return canary


def source_digest(path: Path) -> str:
    """Digest of a .gguf file, or of the manifest of a bundle, which holds the digests of everything else."""
    if path.is_dir():
        return hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest()
    return file_digest(path)


def _facts_path(weights: Weights) -> Path:
    return cache_dir() / "costs" / f"{facts_key(weights.info)}.json"
