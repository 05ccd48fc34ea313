"""A model on disk: what lies at a path, found out once and handed on. No weights are opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from ..errors import ModelNotFoundError
from ..profiling.canary import Canary
from ..progress import Counted
from ..sampling.generation import Generation
from ..text.tokenizer import Tokenizer
from .decoder_file import DecoderFile
from .generation_settings import Generating
from .manifest import MANIFEST_NAME, DraftEntry


class ModelFile(ABC):
    """One model on disk. A kind of model file is a class; open_model() knows which one lies at a path.

    Usable wherever a path is. Properties raise ModelFileError where the file contradicts itself.
    """

    @property
    @abstractmethod
    def path(self) -> Path:
        """The file, or the folder."""

    @property
    @abstractmethod
    def formats(self) -> tuple[str, ...]:
        """What it holds, as engines name it: "gguf", "onnx", ..."""

    @property
    def imported_formats(self) -> tuple[str, ...]:
        """What it can be converted into before it is opened."""
        return ()

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of everything that decides its answers, in hex."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Tokens that it was trained for."""

    @property
    @abstractmethod
    def is_encoder_decoder(self) -> bool: ...

    @property
    def hears(self) -> bool:
        """Whether its source is a recording."""
        return False

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The jinja2 text."""

    @property
    @abstractmethod
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold its tensors, and others beside them."""

    @property
    def canary(self) -> Canary | None:
        """A known answer, to be asked of every device that runs the model, where it brings one."""
        return None

    @property
    def draft_entry(self) -> DraftEntry | None:
        """The draft that it names, and what it says of it."""
        return None

    @property
    def generating(self) -> Generating:
        """Its settings for generating."""
        return Generating()

    @property
    def suppress_tokens(self) -> tuple[int, ...]:
        """Tokens that are never in an answer."""
        return self.generating.suppress_tokens

    @property
    def begin_suppress_tokens(self) -> tuple[int, ...]:
        """Tokens that no answer begins with."""
        return self.generating.begin_suppress_tokens

    @property
    def generation(self) -> Generation:
        """Its other settings for generating, as transformers names them."""
        return self.generating.generation

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read at the first time. Raises ModelFileError where there is none."""
        return self._read_tokenizer()

    @abstractmethod
    def _read_tokenizer(self) -> Tokenizer: ...

    def named_draft(self) -> Path | None:
        """Where the draft lies that it names, inside or beside it; None: it names none.

        Raises ModelNotFoundError where it is not there.
        """
        if self.draft_entry is None:
            return None
        path = self.path / self.draft_entry.path
        if not (path / MANIFEST_NAME).exists() and not path.is_file():
            raise ModelNotFoundError(
                f"{self} names the draft {self.draft_entry.path}, and there is no model at {path}. Put it there, "
                "or use draft=None to go without one."
            )
        return path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)


class DecoderModel(ModelFile):
    """A decoder that is converted into the formats of engines before they open it; the reference engine needs none."""

    @property
    def imported_formats(self) -> tuple[str, ...]:
        return ("onnx", "onnx-static")

    @property
    @abstractmethod
    def file(self) -> DecoderFile:
        """Its metadata and tensors. Raises ModelFileError."""

    @property
    @abstractmethod
    def model_id(self) -> str:
        """The name it is known by."""

    @property
    @abstractmethod
    def license(self) -> str | None: ...

    @property
    @abstractmethod
    def source_name(self) -> str:
        """What a bundle that is made of it names as its source."""

    @property
    @abstractmethod
    def source_format(self) -> str:
        """And what it says of its format: "gguf", "huggingface"."""

    @abstractmethod
    def digest_of(self, progress: Counted | None) -> str:
        """`digest`, with the share of its files told that has been read."""
