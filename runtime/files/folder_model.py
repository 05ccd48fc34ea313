"""A Hugging Face folder as a model: config.json, safetensors, tokenizer.json and what lies beside them."""

from __future__ import annotations

import json
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from ..errors import ModelFileError
from ..lfs_pointer import refuse_pointer
from ..progress import Counted
from ..storage import file_digest
from ..text.tokenizer import Tokenizer
from .decoder_shape import decoder_shape
from .folder_blocks import PackedTensor
from .folder_decoder import FolderDecoder, read_folder_decoder
from .folder_files import (
    answering_files,
    chat_template_in,
    json_object,
    license_in,
    model_id_of,
    require_tokenizer,
    settings_in,
    tokenizer_in,
)
from .generation_settings import Generating, checked_settings, said_by
from .model_file import DecoderModel
from .rotation import exact_range

_OWN_ROWS = 0.75  # of the rows of a table that its tokenizer has tokens for; what pads it is less


class FolderModel(DecoderModel):
    """A folder of safetensors. Settings and headers are read and compared when it is made; no weight is."""

    def __init__(self, path: Path) -> None:
        """Raises ModelNotFoundError, OptionError where two models lie there, ModelFileError for what contradicts
        itself, and UnsupportedModelError for what is not built, with the way out."""
        self._path, self._settings = path, settings_in(path)
        self._file = read_folder_decoder(path, self._settings)
        self._shape = decoder_shape(self._file)
        _check_tokenizer(require_tokenizer(path), self._shape.vocab_size)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def formats(self) -> tuple[str, ...]:
        return ("safetensors",)

    @property
    def imported_formats(self) -> tuple[str, ...]:
        packed = any(isinstance(tensor, PackedTensor) for tensor in self._file.tensors.values())
        of_gguf = not packed and self._shape.experts is None and not exact_range(self._file)
        return ("onnx", "onnx-static", "gguf") if of_gguf else ("onnx", "onnx-static")

    @property
    def file(self) -> FolderDecoder:
        return self._file

    @property
    def digest(self) -> str:
        return self.digest_of(None)

    def digest_of(self, progress: Counted | None) -> str:
        files = (*answering_files(self._path), *self._file.files)
        total, done, lines = sum(file.stat().st_size for file in files), 0, []
        for file in files:
            told = None if progress is None else _after(done, total, progress)
            lines.append(f"{file.name} {file_digest(file, told)}\n")
            done += file.stat().st_size
        return sha256("".join(lines).encode()).hexdigest()

    @property
    def context_length(self) -> int:
        return self._shape.context_length

    @property
    def is_encoder_decoder(self) -> bool:
        return False

    @property
    def chat_template(self) -> str | None:
        return chat_template_in(self._path)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return self._file.files

    @property
    def model_id(self) -> str:
        return model_id_of(self._path, self._settings)

    @property
    def license(self) -> str | None:
        return license_in(self._path)

    @property
    def source_name(self) -> str:
        return self.model_id

    @property
    def source_format(self) -> str:
        return "huggingface"

    @cached_property
    def generating(self) -> Generating:
        said = said_by(json_object(self._path / "generation_config.json"), self._settings)
        return checked_settings(said, self._shape.vocab_size)

    def _read_tokenizer(self) -> Tokenizer:
        return tokenizer_in(self._path, self._settings)


def _after(done: int, total: int, progress: Counted) -> Counted:
    """Told of one file, it tells of all."""
    return lambda n, _: progress(done + n, total)


def _check_tokenizer(path: Path, rows: int) -> None:
    """Raise ModelFileError where a tokenizer.json has tokens that the weights have no row for, or is that of another
    model: a table has more rows than tokens only to be of a round size."""
    try:
        described = json.loads(path.read_bytes())
        vocabulary = described["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [int(token["id"]) for token in described.get("added_tokens") or ()]
        last = max([max(ids, default=-1), *added])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse_pointer(path)
        raise ModelFileError(f"{path} is not a tokenizer.json: {error!r}. Fetch or copy it again.") from error
    if last >= rows or last + 1 < _OWN_ROWS * rows:
        raise ModelFileError(
            f"{path} has {last + 1} tokens, and the weights beside it have rows for {rows}: it belongs to another "
            "model. Put the tokenizer.json there that the weights were trained with."
        )
