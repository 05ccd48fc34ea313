"""The tokenizer of a model: our own where we know its kind, else that of an engine which reads the file itself."""

from __future__ import annotations

from pathlib import Path

from .. import backends
from ..runtime.errors import UnsupportedModelError
from ..runtime.files import model_file
from ..runtime.files.gguf_file import read_gguf
from ..runtime.text.tokenizer import Tokenizer


def read_tokenizer(location: Path) -> tuple[Tokenizer, str | None]:
    """The tokenizer and the chat template, if there is one, of a .gguf file or a bundle folder.

    Raises ModelFileError, and UnsupportedModelError where nobody here reads the vocabulary, with who does.
    """
    try:
        return model_file.read_tokenizer(location)
    except UnsupportedModelError as error:
        if location.is_dir():
            raise
        engines = backends.foreign_openers()
        if not engines:
            raise UnsupportedModelError(
                f"{error} The llamacpp engine reads others, too; add it with: {backends.get('llamacpp').install}"
            ) from error
        tokenizer = engines[0].tokenizer(location)
    template = read_gguf(location).metadata.get("tokenizer.chat_template")
    return tokenizer, template if isinstance(template, str) else None
