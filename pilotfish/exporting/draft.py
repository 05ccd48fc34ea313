"""The draft of an export: its pairing proven before the long work, its worth measured on the finished bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..drafts.check import check_draft
from ..exporters.formats import FORMATS
from ..runtime.errors import CacheWriteError, OptionError
from ..runtime.files.bundle import open_bundle, write_json_atomically
from ..runtime.files.manifest import DraftEntry
from ..runtime.progress import Progress
from ..runtime.speculation.vocab_mapping import Pairing, pair
from ..verifying.report import Report
from ..verifying.verify import own_threads
from .job import Job, Plan
from .options import only_for
from .prepare import prepare

FOLDER = "draft"
_TOKEN_MAP = "token_map.json"
_TOKENS, _PER_SET = 32, 2
_CONTEXT = 2048  # that measuring asks for


def prepare_draft(job: Job, plan: Plan) -> tuple[Job, Pairing]:
    """The export of the draft, and how its vocabulary fits the target's.

    A draft cannot change an answer, so it is asked to be right, not to be good: how often it agrees is measured. One
    of another source that is there already is replaced. Raises what preparing an export raises, and OptionError
    naming the first token of vocabularies that do not fit.
    """
    assert job.draft is not None
    asked = replace(job, source=job.draft, draft=None, min_agreement=0.0, out=job.out / FOLDER, force=True)
    beside = only_for(asked, plan.engines)
    draft = prepare(beside).source
    if (draft.encoder_decoder is None) != (plan.source.encoder_decoder is None):
        kind = "a decoder" if draft.encoder_decoder is None else "an encoder-decoder"
        raise OptionError(f"{job.draft} is {kind}, and the model is not: choose a draft of the model's own kind.")
    return beside, pair(plan.source.tokenizer, draft.tokenizer)


def export_draft(
    beside: Job,
    pairing: Pairing,
    formats: tuple[str, ...],
    building: Path,
    tell: Progress,
    run: Callable[[Job, Progress], Report],
) -> DraftEntry:
    """What the manifest says of the draft, once it is exported into the target's bundle in the formats that passed;
    nothing is measured yet."""
    run(replace(only_for(beside, formats), out=building / FOLDER), lambda what, share: tell(f"draft: {what}", share))
    token_map = None
    if pairing.kind == "mapped":
        token_map = _TOKEN_MAP
        if not write_json_atomically(building / token_map, pairing.to_facts()):
            raise CacheWriteError(f"{building / token_map} cannot be written. Free space there.")
    return DraftEntry(
        path=FOLDER,
        model_id=open_bundle(building / FOLDER).manifest.model_id,
        pairing=pairing.kind,
        n_shared=pairing.n_shared,
        token_map=token_map,
    )


def measured(entry: DraftEntry, building: Path, first: str, tell: Progress) -> DraftEntry:
    """The same with what the draft was found to bring on the engine of the format `first`, on this machine."""
    contexts = [open_bundle(folder).manifest.context_length for folder in (building, building / FOLDER)]
    if min(contexts) < _CONTEXT:
        return entry.model_copy(
            update={"note": f"Not measured: {min(contexts)} tokens of context are too few for that."}
        )
    found = check_draft(
        building,
        building / FOLDER,
        engine=FORMATS[first].engine,
        threads=own_threads(),
        n_tokens=_TOKENS,
        per_set=_PER_SET,
        progress=tell,
    )
    if found.doubt:
        return entry.model_copy(update={"note": f"Not measured: {found.doubt}."})
    facts = {
        "acceptance": {name: s.draft.acceptance for name, s in found.sets.items()},
        "speed_up": {name: s.draft.speed_up for name, s in found.sets.items()},
        "pays": found.pays,
        "note": found.verdict,
    }
    return entry.model_copy(update=facts)
