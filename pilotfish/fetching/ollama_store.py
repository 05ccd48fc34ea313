"""Models that Ollama has fetched: found through its manifests, and read where they lie.

Source: the layout of Ollama's store. `manifests/HOST/NAMESPACE/MODEL/TAG` is a JSON object with layers by media type,
and a layer with the digest sha256:X lies in `blobs/sha256-X`.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

from ..runtime.checks import shown
from ..runtime.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError

PREFIX = "ollama:"
_KIND = "application/vnd.ollama.image."


def ollama_model(name: str) -> Path:
    """The .gguf file, a blob without suffix, of a model in Ollama's store; `name` without the prefix: "llama3.2:1b".

    Raises ModelNotFoundError naming what is close, ModelFileError for a manifest or a blob that is not whole, and
    UnsupportedModelError for a model with an adapter.
    """
    store = _store()
    manifest = _manifest(store, name)
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        digests = {kind: [str(x["digest"]) for x in layers if x["mediaType"] == _KIND + kind] for kind in _KINDS}
        sizes = {str(layer["digest"]): int(layer["size"]) for layer in layers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{manifest} is no manifest of Ollama: {error!r}. Run: ollama pull {name}") from None
    if digests["adapter"]:
        raise UnsupportedModelError(
            f"{PREFIX}{name} is a model with an adapter, and without it the answers would be another model's. "
            "Merge the two into one .gguf file, and open that."
        )
    if len(digests["model"]) != 1:
        raise UnsupportedModelError(f"{PREFIX}{name} consists of {len(digests['model'])} model files, not of one.")
    digest = digests["model"][0]
    blob = store / "blobs" / digest.replace(":", "-")
    if not blob.is_file() or blob.stat().st_size != sizes[digest]:
        raise ModelFileError(f"{blob}, the file of {PREFIX}{name}, is not whole. Run: ollama pull {name}")
    return blob


_KINDS = ("model", "adapter")


def _store() -> Path:
    """The folder of Ollama's store. Raises ModelNotFoundError."""
    configured = os.environ.get("OLLAMA_MODELS")
    places = [Path(configured).expanduser()] if configured else [Path.home() / ".ollama" / "models", _SERVICE]
    for place in places:
        if (place / "manifests").is_dir():
            return place
    raise ModelNotFoundError(
        f"there is no store of Ollama at {' or '.join(map(str, places))}; set OLLAMA_MODELS to where it is."
    )


_SERVICE = Path("/usr/share/ollama/.ollama/models")  # where its installer's service keeps them


def _manifest(store: Path, name: str) -> Path:
    """The manifest of a model by the name that Ollama knows it by: [HOST/][NAMESPACE/]MODEL[:TAG]."""
    place, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    parts = place.split("/")
    known = {_name(path.relative_to(store / "manifests").parts): path for path in sorted(_manifests(store))}
    if all(parts) and tag:
        wanted = ("/".join(parts) if len(parts) > 1 else f"library/{place}") + f":{tag}"
        found = [path for full, path in known.items() if full == wanted or full.partition("/")[2] == wanted]
        if found:
            return found[0]
    short = sorted({full.partition("/")[2].removeprefix("library/").removesuffix(":latest") for full in known})
    close = difflib.get_close_matches(name, short, n=1, cutoff=0.5)
    hint = f" Did you mean {PREFIX}{close[0]}?" if close else ""
    listed = f" It has {', '.join(short)}." if short else " It is empty."
    raise ModelNotFoundError(f"Ollama's store, {store}, has no model {shown(name)}.{hint}{listed}")


def _manifests(store: Path) -> list[Path]:
    return [path for path in (store / "manifests").rglob("*") if path.is_file() and not path.name.startswith(".")]


def _name(parts: tuple[str, ...]) -> str:
    """HOST/NAMESPACE/MODEL:TAG of a manifest's path."""
    return f"{'/'.join(parts[:-1])}:{parts[-1]}"
