"""`pilotfish inspect` of a folder made elsewhere: what it is, and what each engine does with it."""

from __future__ import annotations

from .. import backends
from ..loading.opening import Place, open_weights
from ..runtime.errors import PilotfishError
from ..runtime.files.made_elsewhere import MadeElsewhere

_SMALL = 1 << 30  # bytes of weights that may be loaded to see what can be done with them


def elsewhere_facts(folder: MadeElsewhere) -> dict[str, object]:
    """The facts, by topic. Raises ModelFileError for what is missing or contradicts itself."""
    tokenizer, size = folder.tokenizer, sum(file.stat().st_size for file in folder.weight_files)
    facts: dict[str, object] = {
        "path": str(folder),
        "kind": folder.kind,
        "graph": folder.graph.relative_to(folder.path).as_posix(),
        "architecture": folder.architecture,
        "context": folder.context_length,
        "size": f"{size / 1e6:.1f} MB in {len(folder.weight_files)} files",
        "tokenizer": f"tokenizer.json, {tokenizer.vocab_size} tokens",
        "chat template": "yes" if folder.chat_template else "none",
        "ends a text": ", ".join(map(str, tokenizer.ordered_eos_ids)) or "nothing",
    }
    return facts | {name: _does(folder, name, size > _SMALL) for name in backends.names()}


def _does(folder: MadeElsewhere, name: str, large: bool) -> str:
    """What an engine does with the folder, in words."""
    backend = backends.get(name)
    if not backends.opens(backend, folder):
        return "does not open it"
    if not backends.usable(backend):
        return f"opens it, and does not run here: {backend.problem() or backend.install}"
    if large:
        return f"opens it; what more it can do shows: pilotfish doctor {folder}"
    try:
        weights, _ = open_weights(folder, Place(backend, None, 1), lambda what, share: None)
    except PilotfishError as error:
        return str(error)
    try:
        able = ", ".join(sorted(weights.session(1).abilities))
        info = weights.info
        return f"opens it ({info.n_layers} layers, {info.vocab_size} tokens, {info.settings}); abilities: {able}"
    finally:
        weights.close()
