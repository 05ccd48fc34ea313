"""A .gguf file as a model: weights, vocabulary and chat template, in one file or split into several."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from ..errors import ModelFileError
from ..progress import Counted
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_gguf import tokenizer_from_gguf
from .generation_settings import Generating, known, listed
from .gguf_file import GgufFile, read_gguf
from .gguf_parts import gguf_digest, gguf_parts
from .model_file import DecoderModel


class GgufModel(DecoderModel):
    """A .gguf file, or the first part of a split one. Its header is read when something is first asked of it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    @property
    def formats(self) -> tuple[str, ...]:
        return ("gguf",)

    @cached_property
    def file(self) -> GgufFile:
        """The header, checked against the file. Raises ModelFileError."""
        return read_gguf(self._path)

    @property
    def digest(self) -> str:
        return gguf_digest(self._path)

    def digest_of(self, progress: Counted | None) -> str:
        return gguf_digest(self._path, progress)

    @property
    def model_id(self) -> str:
        return str(self.file.metadata.get("general.name") or self.file.path.stem)

    @property
    def license(self) -> str | None:
        found = self.file.metadata.get("general.license")
        return found if isinstance(found, str) else None

    @property
    def source_name(self) -> str:
        return self.file.path.name

    @property
    def source_format(self) -> str:
        return "gguf"

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
    def generating(self) -> Generating:
        """The tokens that a file says are never in an answer; it has no place for other settings."""
        tokens = self.file.metadata.get("tokenizer.ggml.tokens")
        said = listed(self.file.metadata, "tokenizer.ggml.suppress_tokens")
        return Generating(suppress_tokens=known(said, len(tokens) if isinstance(tokens, list) else 0))

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return gguf_parts(self._path)

    def _read_tokenizer(self) -> Tokenizer:
        return tokenizer_from_gguf(self.file.metadata)
