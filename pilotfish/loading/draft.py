"""Draft models beside a target: which one a bundle names, how the vocabularies fit, what was found out here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..runtime.errors import OptionError
from ..runtime.files.bundle import DraftEntry, cache_dir, read_json, write_json_atomically
from ..runtime.files.model_file import reads_source, source_digest
from ..runtime.interfaces import ModelInfo
from ..runtime.speculation.draft_weights import DraftWeights, require_alike
from ..runtime.speculation.vocab_mapping import Pairing, pair
from ..runtime.text.tokenizer import Tokenizer
from .broken_weights import naming
from .choosing import Wish, choose, open_first_right
from .measuring import token_seconds
from .opening import Progress, resolve
from .vocabulary import read_tokenizer


def open_draft(
    target: Path,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    wish: Wish,
    report: Progress,
    entry: DraftEntry | None = None,
) -> tuple[DraftWeights, tuple[str, ...]]:
    """A draft model for the target at this path, and what was wrong with other places.

    tokenizer: the target's; entry: what the target's bundle says of the pair, which must not be more than is true.
    Raises OptionError, naming the first token that differs, for vocabularies that do not fit.
    """
    found = resolve(path, report)
    require_alike(reads_source(target), reads_source(found), str(found))
    own, _ = read_tokenizer(found)  # before any weights: it is cheap, and may be the wrong one
    pairing = pairing_of(target, tokenizer, found, own)
    if entry is not None:
        pairing.require(entry.pairing, f"{found} is not the draft that {target} was made with")
    places, _ = choose(found, wish, report)
    weights, _, _, notes = open_first_right(found, places, report)
    try:
        if weights.info.rewinds is not None:
            raise OptionError(
                f"{found} cannot draft: it keeps a state of all it has read, and rejected drafts "
                "would have to be taken out of it. Choose a draft model without such a state, or draft=None."
            )
        with naming(found):
            token_s = token_seconds(weights, report)
    except BaseException:
        weights.close()
        raise
    return DraftWeights(weights, token_s, pairing, own), notes


def pairing_of(target: Path, target_tokenizer: Tokenizer, draft: Path, draft_tokenizer: Tokenizer) -> Pairing:
    """How two models' vocabularies fit: as remembered, or found out now and remembered.

    Raises OptionError where they do not; the message names both.
    """
    name = f"{source_digest(target)[:16]}-{source_digest(draft)[:16]}.json"
    kept = cache_dir() / "pairings" / name
    with contextlib.suppress(ValueError):
        return Pairing.from_facts(read_json(kept))
    try:
        found = pair(target_tokenizer, draft_tokenizer)
    except OptionError as error:
        raise OptionError(f"{draft} cannot draft for {target}: {error}") from None
    write_json_atomically(kept, found.to_facts())
    return found


def remembered_verdict(target: Path, draft: Path, info: ModelInfo) -> bool | None:
    """Whether this draft pays for this target where it runs, as `pilotfish draft check` found; None: not checked."""
    facts = read_json(_verdict_path(target, draft, info))
    pays = facts.get("pays") if isinstance(facts, dict) else None
    return pays if isinstance(pays, bool) else None


def remember_verdict(target: Path, draft: Path, info: ModelInfo, facts: dict[str, object]) -> None:
    """Keep a check's result, "pays" among it. info: of the target's weights."""
    write_json_atomically(_verdict_path(target, draft, info), facts)


def _verdict_path(target: Path, draft: Path, info: ModelInfo) -> Path:
    place = "".join(c if c.isalnum() else "_" for c in f"{info.engine} {info.engine_version} {info.device}")
    name = f"{source_digest(target)[:16]}-{source_digest(draft)[:16]}-{place}-{info.threads}.json"
    return cache_dir() / "drafts" / name
