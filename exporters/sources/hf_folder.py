"""A Hugging Face folder as a source: config.json, safetensors, tokenizer.json and what lies beside them.

Nothing in the folder is executed: no program code that a model brings, and no pickled weights, which are programs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...runtime.errors import EngineMissingError, ModelFileError, UnsupportedModelError
from ...runtime.files.folder_files import (
    chat_template_in,
    json_object,
    license_in,
    model_id_of,
    settings_in,
    text_name,
    tokenizer_in,
    weight_files,
)
from ...runtime.files.generation_settings import generating, languages_of, said_by
from ...runtime.files.safetensors_file import read_safetensors
from ...runtime.storage import file_digest
from ...runtime.text.tokenizer import Tokenizer
from .encoder_decoder_families import ENCODER_DECODERS, encoder_decoder_facts, encoder_decoder_settings
from .families import text_settings
from .model_source import EXPORT_EXTRA, ModelSource, build_config

if TYPE_CHECKING:
    import torch

_FLOATS = {"F32", "F16", "BF16", "F64"}


def read_folder(path: Path) -> tuple[dict[str, Any], list[Path], Tokenizer, str | None]:
    """Settings, weight files, tokenizer and chat template of a Hugging Face folder: all that is read without another
    package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    settings = settings_in(path)
    is_pair = settings.get("model_type") in ENCODER_DECODERS
    settings = encoder_decoder_settings(settings, path) if is_pair else text_settings(settings, path)
    files = weight_files(path)
    for file in files:
        read_safetensors(file)
    return settings, files, tokenizer_in(path, settings), chat_template_in(path)


def open_folder(path: Path) -> ModelSource:
    """The model in a Hugging Face folder.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError, all before a weight is read.
    """
    settings, files, tokenizer, template = read_folder(path)
    said = said_by(json_object(path / "generation_config.json"), json_object(path / "config.json"))
    config: Any = build_config(settings, path)
    facts = encoder_decoder_facts(config, said) if settings["model_type"] in ENCODER_DECODERS else None
    weights = SafetensorsWeights(path, files)
    length = facts.context_length if facts is not None else int(config.max_position_embeddings)
    languages = {} if facts is None else languages_of(tokenizer)
    digests = "".join(f"{file.name} {file_digest(file)}\n" for file in (path / "config.json", *files))
    return ModelSource(
        path=path,
        format="huggingface",
        sha256=sha256(digests.encode()).hexdigest(),
        model_id=model_id_of(path, settings),
        license=license_in(path),
        architecture=str(settings["model_type"]),
        context_length=length,
        tokenizer=tokenizer,
        chat_template=template,
        bos_id=tokenizer.bos_id,
        add_bos=tokenizer.add_bos,
        eos_ids=tokenizer.ordered_eos_ids,
        settings=settings,
        weights=weights,
        encoder_decoder=facts,
        generating=generating(said, int(config.vocab_size), languages),
    )


class SafetensorsWeights:
    """Weights in safetensors files, their headers read; a text part lies under its own name."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        """Raises ModelFileError for files that are cut short or contradict each other."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
        self._open = cast("Any", safe_open)
        self._at: dict[str, tuple[Path, str]] = {}  # name -> file, name in it
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                with self._open(file, framework="numpy") as opened:
                    for stored in opened.keys():  # noqa: SIM118
                        piece = opened.get_slice(stored)
                        self._add(path, file, stored, tuple(piece.get_shape()), piece.get_dtype())
            except (SafetensorError, OSError) as error:
                raise ModelFileError(f"{file} is truncated or damaged: {error}. Fetch or copy it again.") from error

    def _add(self, path: Path, file: Path, stored: str, shape: tuple[int, ...], dtype: str) -> None:
        name = text_name(stored)
        if name is None:
            return
        if name in self._at:
            raise ModelFileError(f"{path} holds the tensor {stored} twice. Remove the files that do not belong to it.")
        if dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"{file}: tensor {stored} is stored as {dtype}: not yet, because only whole floats are read. "
                "Give the model that this one was quantized from."
            )
        self._at[name], self._shapes[name] = (file, stored), shape

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read_into(self, name: str, target: torch.Tensor) -> None:
        file, stored = self._at[name]
        with self._open(file, framework="pt") as opened:
            target.copy_(opened.get_tensor(stored))
