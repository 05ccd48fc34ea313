"""Folders that other tools made, ready to run: a graph, and settings and tokenizer as Hugging Face lays them out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, ModelNotFoundError
from ..lfs_pointer import refuse_pointer
from ..storage import file_digest
from ..text.tokenizer import Tokenizer
from .folder_files import chat_template_in, json_object, tokenizer_in
from .generation_settings import Generating, checked_settings, said_by
from .model_file import ModelFile

_LENGTHS = ("max_position_embeddings", "n_positions", "seq_length")
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


class MadeElsewhere(ModelFile):
    """A decoder that an engine runs as it is. What the graph does not say is read from the settings beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    @property
    @abstractmethod
    def graph(self) -> Path:
        """The file that the engine reads."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What the folder is, in words."""

    @property
    @abstractmethod
    def settings_file(self) -> Path: ...

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The entries that describe the decoder, as config.json names them. Raises ModelFileError."""
        whole = self._read_settings()
        text = whole.get("text_config")
        return {**whole, **text} if isinstance(text, dict) else whole

    def _read_settings(self) -> Mapping[str, Any]:
        if not self.settings_file.is_file():
            raise ModelNotFoundError(f"{self} has no {self.settings_file.name}. Fetch or copy it, too.")
        return json_object(self.settings_file)

    @property
    def architecture(self) -> str:
        return str(self.settings.get("model_type", "unknown"))

    @property
    def context_length(self) -> int:
        return self.size(*_LENGTHS)

    @property
    def window(self) -> int | None:
        """Positions that some layers see, their own included, as the settings say; None: all layers see all."""
        found = self.settings.get("sliding_window")
        used = self.settings.get("use_sliding_window") is not False
        return found if used and isinstance(found, int) and found > 0 else None

    def size(self, *names: str) -> int:
        """The first of these settings that is there. Raises ModelFileError where it is no positive number."""
        found = next((self.settings[name] for name in names if self.settings.get(name) is not None), None)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            said = "does not say" if found is None else f"says {found!r} for"
            raise ModelFileError(f"{self.settings_file} {said} {names[0]}. Fetch or copy it again.")
        return found

    def require_sizes(self, found: Mapping[str, int]) -> None:
        """Raise ModelFileError where the graph has other sizes than the settings say. found: by setting."""
        for name, size in found.items():
            said = self.settings.get(name)
            if said is not None and said != size:
                raise ModelFileError(
                    f"{self.graph} and {self.settings_file.name} beside it are of different models: the one has "
                    f"{name} {size}, the other says {said}. Fetch the folder anew."
                )

    @property
    def is_encoder_decoder(self) -> bool:
        return False

    @property
    def chat_template(self) -> str | None:
        return chat_template_in(self.path)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The graph, and the files beside it that hold its weights. Raises ModelFileError for a Git LFS pointer."""
        beside = sorted(self.graph.parent.glob(f"{self.graph.name}*"))  # model.onnx.data, model.onnx_data_1
        files = tuple(path for path in beside if path.is_file())
        for file in files:
            refuse_pointer(file)
        return files

    @cached_property
    def digest(self) -> str:
        text = (self.path / name for name in _TEXT_FILES)
        files = (*self.weight_files, self.settings_file, *(path for path in text if path.is_file()))
        try:
            return sha256("".join(f"{file.name} {file_digest(file)}\n" for file in files).encode()).hexdigest()
        except OSError as error:
            raise ModelFileError(f"{self} cannot be read: {error.strerror or error}.") from error

    def said_of_generating(self) -> Mapping[str, Any]:
        """The settings for generating, as generation_config.json names them."""
        return said_by(json_object(self.path / "generation_config.json"), self.settings)

    @cached_property
    def generating(self) -> Generating:
        return checked_settings(self.said_of_generating(), self.size("vocab_size"))

    def _read_tokenizer(self) -> Tokenizer:
        tokenizer, vocab_size = tokenizer_in(self.path, self.settings), self.size("vocab_size")
        if tokenizer.plain_size > vocab_size:
            raise ModelFileError(
                f"{self.path / 'tokenizer.json'} is not this model's: it has {tokenizer.vocab_size} tokens, and the "
                f"model {vocab_size}. Put the tokenizer there that the model was trained with."
            )
        return tokenizer
