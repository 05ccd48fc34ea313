"""A .gguf file as a model: weights, vocabulary and chat template, in one file or split into several."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from ..errors import ModelFileError
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_gguf import tokenizer_from_gguf
from .gguf_file import GgufFile, read_gguf
from .gguf_parts import gguf_digest, gguf_parts
from .model_file import ModelFile


class GgufModel(ModelFile):
    """A .gguf file, or the first part of a split one. Its header is read when something is first asked of it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    @property
    def formats(self) -> tuple[str, ...]:
        return ("gguf",)

    @property
    def imported_formats(self) -> tuple[str, ...]:
        return ("onnx", "onnx-static")

    @cached_property
    def file(self) -> GgufFile:
        """The header, checked against the file. Raises ModelFileError."""
        return read_gguf(self._path)

    @property
    def digest(self) -> str:
        return gguf_digest(self._path)

    @property
    def context_length(self) -> int:
        length = self.file.metadata.get(f"{self.file.architecture}.context_length")
        if not isinstance(length, int):
            raise ModelFileError(f"{self} does not say how long its context is.")
        return length

    @property
    def is_encoder_decoder(self) -> bool:
        return self.file.architecture == "t5"

    @property
    def chat_template(self) -> str | None:
        template = self.file.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return gguf_parts(self._path)

    def _read_tokenizer(self) -> Tokenizer:
        return tokenizer_from_gguf(self.file.metadata)
