"""What can be exported, opened: a Hugging Face folder, a CTranslate2 one, or a .gguf file."""

from __future__ import annotations

from pathlib import Path

from ..runtime.checks import shown
from ..runtime.errors import ModelNotFoundError
from .gguf.source import open_gguf, read_file
from .sources.ctranslate2_file import converted, is_container
from .sources.families import SUPPORTED
from .sources.hf_folder import open_folder, read_folder
from .sources.model_source import ModelSource

__all__ = ["SUPPORTED", "ModelSource", "open_source"]


def open_source(path: str | Path) -> ModelSource:
    """The model at a path, checked as far as headers go; no weight is read.

    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError ("not yet, because ...") and, where transformers is
    not installed, EngineMissingError.
    """
    found = Path(path)
    _require_place(path)
    if found.is_dir():
        return open_folder(converted(found) if is_container(found) else found)
    return open_gguf(found)


def require_source(path: str | Path) -> None:
    """Raise where no model is, or where what is there cannot be exported, as far as that shows without another package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    found = Path(path)
    _require_place(path)
    if found.is_dir():
        if not is_container(found):
            read_folder(found)
    else:
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
    else:
        raise ModelNotFoundError(f"there is no folder and no file {shown(str(path))}.")
