"""From a name or a path to opened weights: what it stands for, what is imported first, and its tokenizer."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..backends.protocol import Backend
from ..runtime.checks import shown
from ..runtime.errors import ModelFileError, ModelNotFoundError, OptionError, UnsupportedModelError
from ..runtime.files.bundle import MANIFEST_NAME, open_bundle, read_manifest
from ..runtime.files.gguf_parts import gguf_parts
from ..runtime.interfaces import Weights
from ..runtime.model.rules import Rules

Progress = Callable[[str, float], None]
"""(what is being done, share done from 0 to 1)"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how weights run. kv_dtype and options: None and empty are the engine's defaults."""

    backend: Backend
    device: str | None
    threads: int
    kv_dtype: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def open_weights(path: Path, place: Place, report: Progress) -> tuple[Weights, Path]:
    """The weights at a path, imported first where the engine wants another format than the file is in, and the .gguf
    file or bundle folder that was opened.

    Raises what Backend.open raises, and CacheWriteError where an import finds no room on the disk.
    """
    location, formats = path, place.backend.formats(place.device)
    if path.is_dir():
        bundle = open_bundle(path)
        chosen = next((f for f in formats if f in bundle.manifest.formats), None)
        if chosen is None:
            raise UnsupportedModelError(
                f"the {place.backend.name} engine opens {' or '.join(formats)}, and {path} holds "
                f"{', '.join(bundle.manifest.formats)}; leave the engine out to pick another."
            )
        if chosen == "gguf":
            location = bundle.file(bundle.manifest.formats["gguf"])
    elif "gguf" not in formats:
        from ..exporters.gguf.import_gguf import import_gguf  # needs the onnx package, which other engines do not

        location = import_gguf(
            path,
            form="onnx" if "onnx" in formats else "onnx-static",
            progress=lambda share, what: report(f"preparing {path.name}: {what}", share),
        )
    weights = place.backend.open(
        location, device=place.device, threads=place.threads, kv_dtype=place.kv_dtype, options=place.options
    )
    return weights, location


def resolve(path: str | os.PathLike[str], report: Progress | None = None) -> Path:
    """The .gguf file or bundle folder that a name or path stands for; fetches a catalogue model that is not here yet.

    Raises ModelNotFoundError naming what is close, UnsupportedModelError for folders of another kind.
    """
    tell = report or (lambda what, share: None)
    name = os.fspath(path)
    if not name.strip():
        raise OptionError("the model's name is empty; give a catalogue name, a .gguf file or a bundle folder.")
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a user's home that is not there
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelNotFoundError(f"{shown(name)} cannot be looked up: {why}.") from None
    if found.is_file():
        if found.suffix.lower() != ".gguf":
            raise ModelFileError(f"{found} is not a .gguf file; give one, or a bundle folder or a catalogue name.")
        return gguf_parts(found)[0]
    if found.is_dir():
        return _resolve_folder(found)
    if found.exists():
        raise ModelFileError(f"{found} is neither a file nor a folder; give a .gguf file or a bundle folder.")
    from ..fetching.catalogue import CATALOGUE
    from ..fetching.fetch import fetch  # needed for names only

    if name in CATALOGUE:
        return fetch(name, progress=lambda done, total: tell(f"fetching {name}", done / total if total else 0.0))
    close = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ModelNotFoundError(
        f"there is no file or folder {name}, and no model of that name.{hint} Known names: {', '.join(CATALOGUE)}."
    )


def _resolve_folder(folder: Path) -> Path:
    if (folder / MANIFEST_NAME).exists():
        return folder
    models = sorted({gguf_parts(path)[0] for path in folder.glob("*.gguf")})
    if len(models) == 1:
        return models[0]
    if models:
        raise OptionError(f"{folder} holds {len(models)} .gguf files; name one: {', '.join(m.name for m in models)}.")
    if (folder / "config.json").exists():
        raise UnsupportedModelError(
            f"{folder} is a Hugging Face folder: weights to export, not to run. Make a bundle of it once with: "
            f"pilotfish export {folder} -o {folder.name}-bundle   and open that, or give a .gguf file of the model."
        )
    graphs = sorted(path.name for path in (*folder.glob("*.onnx"), *folder.glob("*.ort")))
    if graphs:
        raise UnsupportedModelError(
            f"{folder} holds ONNX Runtime files made elsewhere ({', '.join(graphs)}), without {MANIFEST_NAME}: what a "
            "token gets may depend on the others of its step (Moonshine's round all of them by one scale), so that "
            "checking drafts would change the answer. Export the weights that they were made from: "
            "pilotfish export FOLDER -o BUNDLE   For speech that can be a Whisper."
        )
    raise ModelNotFoundError(f"{folder} holds no model: no {MANIFEST_NAME} and no .gguf file.")


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


def read_rules(path: Path, vocab_size: int) -> Rules | None:
    """What a bundle says is never to be said, and its other settings for generating; None for a .gguf file, which
    cannot say so.

    Raises ModelFileError where they name tokens that the model does not have.
    """
    if not path.is_dir():
        return None
    manifest = read_manifest(path)
    named = (*manifest.suppress_tokens, *manifest.begin_suppress_tokens, *manifest.generation.token_ids)
    last = max(named, default=0)
    if last >= vocab_size:
        raise ModelFileError(
            f"{path / MANIFEST_NAME} is damaged: its settings for generating name the token {last}, and the model has "
            f"{vocab_size}. Build the bundle again from its source."
        )
    return Rules(manifest.suppress_tokens, manifest.begin_suppress_tokens, manifest.generation)


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
