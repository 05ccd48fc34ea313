"""A Hugging Face folder as a source: config.json, weights, a tokenizer and what lies beside them.

Nothing in the folder is executed: no program code that a model brings, and nothing of pickled weights but tensors.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from ...runtime.files.folder_files import json_object, license_in, model_id_of, settings_in
from ...runtime.files.generation_settings import checked_settings, languages_of, said_by
from ...runtime.storage import file_digest
from ...runtime.text.tokenizer import Tokenizer
from .encoder_decoder_families import ENCODER_DECODERS, encoder_decoder_facts, encoder_decoder_settings
from .families import text_settings
from .folder_tokenizer import folder_tokenizer
from .model_source import ModelSource, build_config
from .weight_files import PickledWeights, SafetensorsWeights, is_pickled, weight_files


def read_folder(path: Path) -> tuple[dict[str, Any], list[Path], Tokenizer, str | None]:
    """Settings, weight files, tokenizer and chat template of a Hugging Face folder: all that is read without another
    package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    settings = settings_in(path)
    is_pair = settings.get("model_type") in ENCODER_DECODERS
    settings = encoder_decoder_settings(settings, path) if is_pair else text_settings(settings, path)
    return settings, weight_files(path), *folder_tokenizer(path, settings)


def open_folder(path: Path) -> ModelSource:
    """The model in a Hugging Face folder.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError, all before a weight is read.
    """
    settings, files, tokenizer, template = read_folder(path)
    said = said_by(json_object(path / "generation_config.json"), json_object(path / "config.json"))
    config: Any = build_config(settings, path)
    facts = encoder_decoder_facts(config, said) if settings["model_type"] in ENCODER_DECODERS else None
    weights = PickledWeights(path, files) if is_pickled(files[0]) else SafetensorsWeights(path, files)
    length = facts.context_length if facts is not None else int(config.max_position_embeddings)
    languages = None if facts is None else languages_of(tokenizer)
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
        pickled=weights.tensors if isinstance(weights, PickledWeights) else None,
        encoder_decoder=facts,
        generating=checked_settings(said, int(config.vocab_size), languages),
    )
