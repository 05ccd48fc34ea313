"""From a name or a path to opened weights: what it stands for, what is imported first, and its tokenizer."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..backends.protocol import Backend
from ..runtime.checks import shown
from ..runtime.errors import ModelFileError, ModelNotFoundError, OptionError, UnknownFamilyError, UnsupportedModelError
from ..runtime.files.folder_model import FolderModel
from ..runtime.files.manifest import MANIFEST_NAME
from ..runtime.files.model_file import ModelFile
from ..runtime.files.open_model import decoder_of, gguf_of, open_model
from ..runtime.interfaces import Weights
from ..runtime.model.rules import Rules
from ..runtime.progress import Progress


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how weights run. kv_dtype and options: None and empty are the engine's defaults."""

    backend: Backend
    device: str | None
    threads: int
    kv_dtype: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def open_weights(model: ModelFile, place: Place, report: Progress) -> tuple[Weights, ModelFile]:
    """A model's weights, imported first where the engine wants another format than the file is in, and the model file
    that was opened.

    Raises what Backend.open raises, and CacheWriteError where an import finds no room on the disk.
    """
    formats = place.backend.formats(place.device)
    held = [f for f in formats if f in model.formats]  # what is there comes before what would have to be made
    chosen = next((f for f in (*held, *formats) if f in (*model.formats, *model.imported_formats)), None)
    if chosen is None:
        raise UnsupportedModelError(
            f"the {place.backend.name} engine opens {' or '.join(formats)}, and {model} holds "
            f"{', '.join(model.formats)}; leave the engine out to pick another."
        )
    opened = _imported(model, chosen, report) if chosen not in model.formats else model
    if chosen == "gguf":
        opened = gguf_of(opened)
    weights = place.backend.open(
        opened, device=place.device, threads=place.threads, kv_dtype=place.kv_dtype, options=place.options
    )
    return weights, opened


def _imported(model: ModelFile, form: str, report: Progress) -> ModelFile:
    """The model in a format that it was not made in."""

    def told(what: str, share: float) -> None:
        report(f"preparing {model.path.name}: {what}", share)

    if form == "gguf" and isinstance(model, FolderModel):
        from ..exporters.gguf.import_folder import import_folder

        return import_folder(model, progress=told)
    from ..exporters.onnx.import_model import import_model  # needs the onnx package, which other engines do not

    return import_model(decoder_of(model), form="onnx" if form == "onnx" else "onnx-static", progress=told)


def resolve(path: str | os.PathLike[str], report: Progress | None = None) -> ModelFile:
    """The model that a name or path stands for; fetches a catalogue model that is not here yet.

    A ModelFile stands for itself. Raises ModelNotFoundError naming what is close, and what open_model() raises.
    """
    if isinstance(path, ModelFile):
        return path
    tell = report or (lambda what, share: None)
    name = os.fspath(path)
    if not name.strip():
        raise OptionError("the model's name is empty; give a catalogue name, a .gguf file, or a folder with a model.")
    try:
        found = Path(path).expanduser()
        if found.exists():
            return opened(found)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a user's home that is not there
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelNotFoundError(f"{shown(name)} cannot be looked up: {why}.") from None
    from ..fetching import hub, ollama_store
    from ..fetching.by_name import named_model
    from ..fetching.catalogue import NAMES  # needed for names only

    if name.startswith(hub.PREFIX):
        return opened(hub.hub_model(name.removeprefix(hub.PREFIX), tell))
    if name.startswith(ollama_store.PREFIX):
        return opened(ollama_store.ollama_model(name.removeprefix(ollama_store.PREFIX)))
    if name in NAMES:
        return opened(named_model(name, tell))
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ModelNotFoundError(
        f"there is no file or folder {name}, and no model of that name.{hint} Known names: {', '.join(NAMES)}; "
        f"{hub.PREFIX}ORG/NAME is one of the Hugging Face hub, {ollama_store.PREFIX}NAME one that Ollama has fetched."
    )


def opened(path: Path) -> ModelFile:
    """The model at a path, as open_model() finds it; of a family that has to be exported first the error says how."""
    try:
        return open_model(path)
    except UnknownFamilyError as error:
        from ..exporters.sources.encoder_decoder_families import ENCODER_DECODERS, NOT_YET

        if error.family in NOT_YET:
            why = NOT_YET[error.family]
            raise UnsupportedModelError(f"{error} It cannot be exported either: not yet, because {why}.") from None
        if error.family not in ENCODER_DECODERS:
            raise
        command = shlex.join(["pilotfish", "export", str(path), "-o", f"{path.name}-bundle"])
        raise UnsupportedModelError(
            f"{error} An encoder-decoder is exported once, and then opened: {command}"
        ) from None


def source_place(source: str | os.PathLike[str]) -> str | Path:
    """What an export's or a comparison's source is: a path, where something lies there, or a name as it is.

    Raises OptionError for an empty one.
    """
    name = os.fspath(source)
    if not name.strip():
        raise OptionError("the source's name is empty; give a Hugging Face folder, a hub id or a .gguf file.")
    try:
        place = Path(source).expanduser()
        return place if place.exists() else name
    except (OSError, ValueError, RuntimeError):
        return name


def source_folder(source: str | os.PathLike[str], report: Progress | None = None) -> Path:
    """Where an export's or a comparison's source lies; a model of the catalogue or the hub is fetched. Raises
    OptionError, DownloadError, CacheWriteError and ModelNotFoundError."""
    from ..fetching.by_name import named_source
    from ..fetching.catalogue import NAMES
    from ..fetching.hub import hub_folder

    place, tell = source_place(source), report or (lambda what, share: None)
    if isinstance(place, Path):
        return place
    if place in NAMES:
        return named_source(place, tell)
    require_hub_name(place)
    return hub_folder(place, tell)


def require_hub_name(name: str) -> None:
    """Raise ModelNotFoundError for what is no path where something lies, and no name on the hub either."""
    from ..fetching.hub import is_hub_name

    if not is_hub_name(name) or name.lower().endswith(".gguf"):
        raise ModelNotFoundError(f"there is no folder and no file {shown(name)}.")


def rules_of(model: ModelFile, vocab_size: int) -> Rules:
    """What a model says is never to be said, and its other settings for generating.

    Raises ModelFileError where they name tokens that the model does not have.
    """
    named = (*model.suppress_tokens, *model.begin_suppress_tokens, *model.generation.token_ids)
    last = max(named, default=0)
    if last >= vocab_size:
        raise ModelFileError(
            f"{model.path / MANIFEST_NAME} is damaged: its settings for generating name the token {last}, and the "
            f"model has {vocab_size}. Build the bundle again from its source."
        )
    return Rules(model.suppress_tokens, model.begin_suppress_tokens, model.generation)


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
