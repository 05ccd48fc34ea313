"""Draft models beside a target: which one a bundle names, how the vocabularies fit, what was found out here."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..runtime.errors import OptionError
from ..runtime.files.bundle import cache_dir, read_json, write_json_atomically
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import ModelInfo
from ..runtime.progress import Progress
from ..runtime.speculation.draft_weights import DraftWeights, require_alike
from ..runtime.speculation.vocab_mapping import Pairing, pair
from ..runtime.text.tokenizer import Tokenizer
from .broken_weights import naming
from .choosing import Wish, choose, open_first_right
from .measuring import token_seconds
from .vocabulary import read_tokenizer


def open_draft(
    target: ModelFile, tokenizer: Tokenizer, draft: ModelFile, wish: Wish, report: Progress, *, named: bool
) -> tuple[DraftWeights, tuple[str, ...]]:
    """A draft model for a target, and what was wrong with other places.

    tokenizer: the target's. named: by the target itself, and what it says of their vocabularies must not be more than
    is true. Raises OptionError, naming the first token that differs, for vocabularies that do not fit.
    """
    require_alike(target.is_encoder_decoder, draft.is_encoder_decoder, str(draft))
    own = read_tokenizer(draft)  # before any weights: it is cheap, and may be the wrong one
    mapping = mapping_of(target, tokenizer, draft, own)
    if named and target.draft_entry is not None:
        mapping.require(target.draft_entry.pairing, f"{draft} is not the draft that {target} was made with")
    places, _ = choose(draft, wish, report)
    weights, _, _, notes = open_first_right(draft, places, report)
    try:
        if weights.info.rewinds is not None:
            raise OptionError(
                f"{draft} cannot draft: it keeps a state of all it has read, and rejected drafts "
                "would have to be taken out of it. Choose a draft model without such a state, or draft=None."
            )
        with naming(draft):
            token_s = token_seconds(weights, report)
    except BaseException:
        weights.close()
        raise
    return DraftWeights(weights, token_s, mapping, own), notes


def mapping_of(target: ModelFile, target_tokenizer: Tokenizer, draft: ModelFile, draft_tokenizer: Tokenizer) -> Pairing:
    """How two models' vocabularies fit: as remembered, or found out now and remembered.

    Raises OptionError where they do not; the message names both.
    """
    kept = cache_dir() / "pairings" / f"{target.digest[:16]}-{draft.digest[:16]}.json"
    with contextlib.suppress(ValueError):
        return Pairing.from_facts(read_json(kept))
    try:
        found = pair(target_tokenizer, draft_tokenizer)
    except OptionError as error:
        raise OptionError(f"{draft} cannot draft for {target}: {error}") from None
    write_json_atomically(kept, found.to_facts())
    return found


def pays_here(target: ModelFile, draft: ModelFile, info: ModelInfo) -> bool | None:
    """Whether a draft pays for a target where it runs: as `pilotfish draft check` found here, else as the target says
    of the draft that it names; None: nobody knows."""
    facts = read_json(_verdict_path(target, draft, info))
    here = facts.get("pays") if isinstance(facts, dict) else None
    if isinstance(here, bool):
        return here
    return None if target.draft_entry is None else target.draft_entry.pays


def remember_verdict(target: ModelFile, draft: ModelFile, info: ModelInfo, facts: dict[str, object]) -> None:
    """Keep a check's result, "pays" among it. info: of the target's weights."""
    write_json_atomically(_verdict_path(target, draft, info), facts)


def _verdict_path(target: ModelFile, draft: ModelFile, info: ModelInfo) -> Path:
    place = "".join(c if c.isalnum() else "_" for c in f"{info.engine} {info.engine_version} {info.device}")
    name = f"{target.digest[:16]}-{draft.digest[:16]}-{place}-{info.threads}.json"
    return cache_dir() / "drafts" / name
