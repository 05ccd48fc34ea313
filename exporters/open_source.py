"""What can be exported, opened: a Hugging Face folder, the name of a model on the hub, or a .gguf file."""

from __future__ import annotations

import re
from pathlib import Path

from ..runtime.checks import shown
from ..runtime.errors import DownloadError, EngineMissingError, ModelNotFoundError
from .gguf.source import open_gguf, read_file
from .sources.ctranslate2_file import converted, is_container
from .sources.families import SUPPORTED
from .sources.hf_folder import open_folder, read_folder
from .sources.model_source import EXPORT_EXTRA, ModelSource

__all__ = ["SUPPORTED", "ModelSource", "open_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("*.json", "*.jinja", "*.spm", "*.model", "LICENSE*", "README.md")
_SAFE, _PICKLED = "*.safetensors", "pytorch_model*.bin"
_ANSWER_S = 10.0


def open_source(path: str | Path) -> ModelSource:
    """The model at a path, or of that name on the hub, checked as far as headers go; no weight is read.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError ("not yet, because ..."), DownloadError and, where
    transformers is not installed, EngineMissingError.
    """
    found = Path(path)
    _require_place(path)
    if found.is_dir():
        return open_folder(converted(found) if is_container(found) else found)
    if found.exists():
        return open_gguf(found)
    return open_folder(_download(str(path).removeprefix("hf:")))


def require_source(path: str | Path) -> None:
    """Raise where no model can be (no folder with one, no file, and no name of the hub), or where what is there cannot
    be exported, as far as that shows without another package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    found = Path(path)
    _require_place(path)
    if found.is_dir():
        if not is_container(found):
            read_folder(found)
    elif found.exists():
        read_file(found)


def _require_place(path: str | Path) -> None:
    found = Path(path)
    if found.is_dir():
        if not is_container(found) and not (found / "config.json").exists():
            raise ModelNotFoundError(f"{found} holds no model to export: it has no config.json.")
    elif found.exists():
        if not found.is_file():
            raise ModelNotFoundError(
                f"{found} is neither a file nor a folder; give a Hugging Face folder or a .gguf file."
            )
    elif found.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(str(path).removeprefix("hf:")):
        raise ModelNotFoundError(f"there is no folder and no file {shown(str(path))}.")


def _download(name: str) -> Path:
    """The folder that holds a model of the hub. Without a network the refusal takes seconds."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise EngineMissingError(
            f"there is no folder {name}, and fetching a model of that name needs huggingface_hub. {EXPORT_EXTRA}"
        ) from error
    try:
        found = HfApi().model_info(name, timeout=_ANSWER_S)  # asked first: a download tries again for minutes
        safe = any(file.rfilename.endswith(".safetensors") for file in found.siblings or ())
        wanted = [*_WANTED, _SAFE if safe else _PICKLED]
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=_ANSWER_S))
    except Exception as error:  # its own errors and its network library's have no common class
        raise DownloadError(
            f"there is no folder {name}, and a model of that name cannot be fetched: {str(error).splitlines()[0]}. "
            "Check the name and the network, or give a folder."
        ) from error
