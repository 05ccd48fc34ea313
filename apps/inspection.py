"""`pilotfish inspect`: what a model file holds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from rich.console import Console

from .. import backends
from ..loading.load import resolve
from ..runtime.errors import PilotfishError
from ..runtime.files.bundle import Bundle
from ..runtime.files.decoder_file import DecoderFile
from ..runtime.files.gguf_model import GgufModel
from ..runtime.files.made_elsewhere import MadeElsewhere
from ..runtime.files.manifest import DraftEntry, Manifest
from ..runtime.files.model_file import DecoderModel
from ..runtime.files.open_model import decoder_of
from .inspection_elsewhere import elsewhere_facts
from .terminal import output, print_json, show_facts, show_table

_SMALL = 1 << 30  # bytes of a file that may be loaded to see what can be done with it
_LONG = 120  # characters of a value that a terminal shows


def inspect_model(model: str, as_json: bool) -> None:
    """Print the facts of a .gguf file, a folder of safetensors, a bundle, or a folder made elsewhere."""
    file = resolve(model)
    out = output()
    if isinstance(file, Bundle):
        if as_json:
            print_json({"path": str(file), **file.manifest.model_dump(mode="json")})
        else:
            _show_bundle(file, out)
        return
    found = elsewhere_facts(file) if isinstance(file, MadeElsewhere) else _file_facts(decoder_of(file))
    if as_json:
        print_json(found)
    else:
        show_facts(out, _shortened(out, found))


def _show_bundle(bundle: Bundle, out: Console) -> None:
    manifest = bundle.manifest
    total = sum(fact.bytes for fact in manifest.files.values())
    facts: dict[str, object] = {
        "path": bundle.path,
        "model": f"{manifest.model_id} ({manifest.architecture}), context {manifest.context_length}",
        "kind": _kind_words(bundle),
        "license": " in ".join(x for x in (manifest.license, manifest.license_file) if x) or "not named by the source",
        "source": f"{manifest.source.name} ({manifest.source.format}), sha256 {manifest.source.sha256[:16]}...",
        "size": f"{total / 1e6:.1f} MB in {len(manifest.files)} files",
        "formats": ", ".join(manifest.formats),
        "tokenizer": manifest.tokenizer or "none",
        "chat template": "yes" if manifest.chat_template else "none",
        "ends a text": ", ".join(map(str, manifest.eos_ids)) or "nothing",
        "never says": _suppression_words(manifest),
        "own settings": _generation_words(manifest),
        **({"languages": " ".join(manifest.generation.languages)} if manifest.generation.languages else {}),
        "draft": _draft_words(manifest.draft) if manifest.draft else "none",
        "canary": _canary_words(bundle),
    }
    facts |= {f"cache for {engine}": kind for engine, kind in manifest.kv_hints.items()}
    facts |= {name: f"{value:g}" for name, value in manifest.report.items()}
    show_facts(out, _shortened(out, facts))
    if manifest.reports:
        _show_reports(out, manifest)
    for form in manifest.formats:
        show_facts(out, _shortened(out, _format_facts(bundle, form)), title=f"\n{form}")


def _show_reports(out: Console, manifest: Manifest) -> None:
    """What was measured of each format, side by side."""
    forms = [form for form in manifest.formats if form in manifest.reports]
    found = [manifest.reports[form] for form in forms]
    limits = [manifest.thresholds.get(form, {}) for form in forms]
    rows = []
    for name in dict.fromkeys(name for report in found for name in report):
        label = name.replace("_", " ")
        for row, values in ((label, found), (f"  {label} allowed", limits)):
            if any(name in numbers for numbers in values):
                rows.append((row, *(f"{numbers[name]:.4g}" if name in numbers else "" for numbers in values)))
    show_table(out, ("measured", *forms), rows, title="\ncompared with the source")


def _format_facts(bundle: Bundle, form: str) -> dict[str, object]:
    """What is known of one format: its file, and how it was made."""
    manifest = bundle.manifest
    facts: dict[str, object] = {"file": manifest.formats[form], **manifest.recipe_of(form)}
    if form in manifest.encoders:
        facts["encoder"] = manifest.encoders[form]
    if form in manifest.unverified:
        facts["compared with its source"] = "no: it could not be run where it was made"
    elif form not in manifest.reports:
        facts["compared with its source"] = "no"
    return facts


def _kind_words(bundle: Bundle) -> str:
    manifest = bundle.manifest
    if not manifest.encoders:
        return "decoder"
    limit = "" if manifest.source_limit is None else f", {manifest.source_limit} at most"
    reads = "frames of sound" if manifest.source_kind == "audio" else "tokens"
    start = " ".join(map(str, manifest.decoder_start))
    return f"encoder-decoder: reads {reads}{limit}; answers go on from {start}"


def _suppression_words(manifest: Manifest) -> str:
    found = []
    if manifest.suppress_tokens:
        found.append(f"{len(manifest.suppress_tokens)} tokens: {' '.join(map(str, manifest.suppress_tokens))}")
    if manifest.begin_suppress_tokens:
        found.append(f"at first {' '.join(map(str, manifest.begin_suppress_tokens))}")
    return "; ".join(reversed(found)) or "nothing is ruled out"


def _generation_words(manifest: Manifest) -> str:
    """The settings for generating that do something, and those that nothing here does."""
    found = manifest.generation
    said = found.model_dump(exclude_defaults=True, exclude={"languages", "language_in_source", "unheeded"})
    words = [f"{name} {_listed(value)}" for name, value in said.items()]
    if found.unheeded:
        words.append(f"not heeded: {' '.join(found.unheeded)}")
    return "; ".join(words) or "none"


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _draft_words(draft: DraftEntry) -> str:
    pays = {True: "pays", False: "does not pay on the machine it was made on", None: "not measured"}[draft.pays]
    accepted = ", ".join(f"{name} {share:.0%}" for name, share in draft.acceptance.items())
    return f"{draft.model_id} in {draft.path}, {draft.pairing} vocabulary; {pays}" + (
        f"; {accepted}" if accepted else ""
    )


def _canary_words(bundle: Bundle) -> str:
    canary, greedy = bundle.manifest.canary, bundle.manifest.greedy
    if canary is None:
        return "none"
    more = "" if greedy is None else f", goes on with {' '.join(map(str, greedy.ids[:6]))}..."
    return f"{len(canary.tokens)} tokens, {len(canary.best)} known answers{more}"


def _shortened(out: Console, facts: dict[str, object]) -> dict[str, object]:
    """Values as one line each, the beginning of a long one on a terminal, all of it in a file."""
    texts = {name: str(value).replace("\n", "\\n") for name, value in facts.items()}
    if not out.is_terminal:
        return {**texts}
    return {
        name: text
        if len(text) <= _LONG or name in ("path", "languages")
        else f"{text[:_LONG]}... ({len(text)} characters; --json shows all)"
        for name, text in texts.items()
    }


def _found(model: GgufModel) -> dict[str, str]:
    """What the engine for any .gguf file finds of this one; it looks at a file only once."""
    large = sum(part.stat().st_size for part in model.weight_files) > _SMALL
    for opener in backends.foreign_openers():
        try:
            untried = {"llamacpp": f"not tried yet; to find out what it can do: pilotfish doctor {model}"}
            return opener.looks(model, cheaply=large) or untried
        except PilotfishError as error:
            return {"llamacpp": str(error)}
    return {
        "llamacpp": f"not installed; it finds out what can be done with any file: {backends.get('llamacpp').install}"
    }


def _experts(file: DecoderFile) -> dict[str, str]:
    """How many there are, and how many of them a token passes."""
    count, used = (file.metadata.get(f"{file.architecture}.expert_{x}") for x in ("count", "used_count"))
    return {"experts": f"{used} of {count} in a layer are computed for a token"} if count and used else {}


def _file_facts(model: DecoderModel) -> dict[str, object]:
    file, path = model.file, model.path
    types = Counter(t.type_name for t in file.tensors.values())
    plain = {k: v if not isinstance(v, (list, np.ndarray)) else f"{len(v)} values" for k, v in file.metadata.items()}
    return {
        "path": str(path),
        "bytes": sum(part.stat().st_size for part in model.weight_files),
        "architecture": file.architecture,
        **_experts(file),
        **(_found(model) if isinstance(model, GgufModel) else {}),
        "tensors": len(file.tensors),
        "tensor_types": dict(types.most_common()),
        **plain,
    }
