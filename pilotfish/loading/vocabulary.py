"""The tokenizer of a model: our own where we know its kind, else that of an engine which reads the file itself."""

from __future__ import annotations

from .. import backends
from ..runtime.errors import UnsupportedModelError
from ..runtime.files.gguf_model import GgufModel
from ..runtime.files.model_file import ModelFile
from ..runtime.text.tokenizer import Tokenizer


def read_tokenizer(model: ModelFile) -> Tokenizer:
    """The tokenizer of a model.

    Raises ModelFileError, and UnsupportedModelError where nobody here reads the vocabulary, with who does.
    """
    try:
        return model.tokenizer
    except UnsupportedModelError as error:
        if not isinstance(model, GgufModel):
            raise
        engines = backends.foreign_openers()
        if not engines:
            raise UnsupportedModelError(
                f"{error} The llamacpp engine reads others, too; add it with: {backends.get('llamacpp').install}"
            ) from error
        return engines[0].tokenizer(model)
