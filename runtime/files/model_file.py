"""What a model on disk says of itself beside its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import ModelFileError, ModelNotFoundError
from ..text.tokenizer import Tokenizer
from .bundle import MANIFEST_NAME, DraftEntry, open_bundle
from .gguf_file import read_gguf
from .gguf_parts import gguf_digest


def read_tokenizer(location: Path) -> tuple[Tokenizer, str | None]:
    """The tokenizer and the chat template, if there is one, of a .gguf file or a bundle folder."""
    if location.is_dir():
        bundle = open_bundle(location)
        return bundle.tokenizer(), bundle.manifest.chat_template
    from ..text.tokenizer_gguf import tokenizer_from_gguf
    from .gguf_file import read_gguf

    metadata = read_gguf(location).metadata
    template = metadata.get("tokenizer.chat_template")
    return tokenizer_from_gguf(metadata), template if isinstance(template, str) else None


def source_digest(path: Path) -> str:
    """Digest of a .gguf file, or of the manifest of a bundle, which holds the digests of everything else."""
    if path.is_dir():
        return hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest()
    return gguf_digest(path)


def named_draft(target: Path) -> tuple[Path, DraftEntry] | None:
    """The draft that a bundle names, found inside or beside it, and what the bundle says of it; None: it names none.

    Raises ModelNotFoundError where it is not there.
    """
    if not target.is_dir():
        return None
    entry = open_bundle(target).manifest.draft
    if entry is None:
        return None
    path = target / entry.path
    if not (path / MANIFEST_NAME).exists() and not path.is_file():
        raise ModelNotFoundError(
            f"{target} names the draft {entry.path}, and there is no model at {path}. Put it there, "
            "or use draft=None to go without one."
        )
    return path, entry


def reads_source(path: Path) -> bool:
    """Whether the model at a path is an encoder-decoder model."""
    return bool(open_bundle(path).manifest.encoders) if path.is_dir() else read_gguf(path).architecture == "t5"


def context_length(path: Path) -> int:
    """Tokens that the model at a path, a .gguf file or a bundle, was trained for; read without opening weights."""
    if path.is_dir():
        return open_bundle(path).manifest.context_length
    metadata = read_gguf(path).metadata
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if not isinstance(length, int):
        raise ModelFileError(f"{path} does not say how long its context is.")
    return length
