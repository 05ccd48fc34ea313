"""Models of the catalogue by their short names: where they lie once they are here, and how they come."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import DownloadError, UnsupportedModelError
from ..runtime.progress import Progress
from .catalogue import CATALOGUE, ON_HUB, SURE
from .fetch import fetch, model_path
from .hub import PREFIX, hub_folder, hub_model


def named_model(name: str, report: Progress) -> Path:
    """The file of a model of the catalogue, fetched unless it is here.

    Raises DownloadError, CacheWriteError, and UnsupportedModelError for one that is exported first, with the command.
    """
    if name in ON_HUB and ON_HUB[name].filename is None:
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder, which is exported once and then opened by its folder's name: "
            f"pilotfish export {name} -o {name}-bundle"
        )
    return named_source(name, report)


def named_source(name: str, report: Progress) -> Path:
    """What an export of a model of the catalogue is made of: its file, or its folder. Fetched unless it is here.

    Raises DownloadError and CacheWriteError.
    """
    if name in CATALOGUE:
        return fetch(name, lambda done, total: report(f"fetching {name}", done / total if total else 0.0))
    entry = ON_HUB[name]
    try:
        if entry.filename is None:
            return hub_folder(entry.repository, report)
        return cached(name) or hub_model(entry.address.removeprefix(PREFIX), report)
    except DownloadError as error:
        raise DownloadError(
            f"{name}: {error}. What needs no hub is {SURE}, which comes from the package index."
        ) from error


def cached(name: str) -> Path | None:
    """The file of a model of the catalogue that is here, found without a network; None where it is not."""
    if name in CATALOGUE:
        path = model_path(name)
        return path if path.exists() else None
    entry = ON_HUB[name]
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    if entry.filename is None:
        return None
    place = Path(HF_HUB_CACHE) / f"models--{entry.repository.replace('/', '--')}" / "snapshots"
    return next((path for path in sorted(place.glob(f"*/{entry.filename}")) if path.exists()), None)
