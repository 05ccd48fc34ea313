"""What is found out about weights on this machine, once, and remembered: costs, row classes, the known answer."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

from pydantic import ValidationError

from . import backends
from .opening import Place, Progress, open_weights, read_tokenizer
from .runtime.bundle import MANIFEST_NAME, cache_dir, open_bundle, read_json, write_json_atomically
from .runtime.canary import TEXT, Canary, make_canary
from .runtime.cost import Calibration, CostCurve, calibrate, facts_key
from .runtime.errors import UnsupportedModelError
from .runtime.interfaces import Weights
from .runtime.rows import RowClasses
from .runtime.storage import file_digest


def calibration(weights: Weights, report: Progress) -> Calibration:
    """Costs and row classes of these weights here: as remembered, or measured now and remembered."""
    facts = read_json(_facts_path(weights))
    if isinstance(facts, dict):
        try:
            classes = tuple(tuple(int(w) for w in c) for c in facts["classes"])
            return Calibration(CostCurve.from_facts(facts), RowClasses(classes, weights.info.widths))
        except (KeyError, TypeError, ValueError):
            pass  # damaged, or of an older version: measured again
    report("measuring this machine", 0.0)
    session = weights.session(min(weights.info.context_length, 256))
    try:
        measured = calibrate(session)
    finally:
        session.close()
    report("measuring this machine", 1.0)
    keep_calibration(measured, weights)
    return measured


def keep_calibration(measured: Calibration, weights: Weights) -> None:
    """Remember what was refined while it was used."""
    facts = measured.curve.to_facts()
    if facts is not None:
        classes = [list(c) for c in measured.rows.classes]
        write_json_atomically(_facts_path(weights), {**facts, "classes": classes, "measured": time.strftime("%F")})


def known_answer(path: Path, report: Progress) -> Canary | None:
    """The canary of a bundle, or of a .gguf file as the reference engine answers it, which is computed once.

    None where a bundle has none and where the reference engine does not know the architecture.
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
    session = weights.session(min(weights.info.context_length, 64))
    canary = make_canary(session, tokenizer.encode(TEXT))
    session.close()
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
