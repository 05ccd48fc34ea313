"""The table of a model's own speech, kept in the cache for whoever drafts with it."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import CacheWriteError, ModelFileError
from ..runtime.files.model_file import ModelFile
from ..runtime.speculation.ngram_table import NGramTable
from ..runtime.storage import cache_dir, require_writable, write_atomically


def speech_path(model: ModelFile) -> Path:
    """Where the table of this model lies, once it is made."""
    return cache_dir() / "speech" / f"{model.digest[:16]}.ngrams"


def kept_speech(model: ModelFile, vocab_size: int) -> NGramTable | None:
    """The table that `pilotfish draft speech` made of this model; None where there is none, or it is damaged."""
    try:
        return NGramTable.from_bytes(speech_path(model).read_bytes(), vocab_size)
    except (OSError, ModelFileError):
        return None


def require_kept(model: ModelFile) -> None:
    """Raise CacheWriteError where a table of this model could not be kept: asked before long work."""
    path = speech_path(model)
    if path.is_dir():
        raise CacheWriteError(f"{path} is a folder, and a table is to be kept there. Remove it.")
    require_writable(path.parent)


def keep_speech(model: ModelFile, table: NGramTable) -> Path:
    """Keep the table for the next load(); where it lies. Raises CacheWriteError."""
    path = speech_path(model)
    write_atomically(path, table.to_bytes())
    return path
