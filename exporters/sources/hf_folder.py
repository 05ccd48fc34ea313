"""A Hugging Face folder as a source: config.json, weights, a tokenizer and what lies beside them.

Nothing in the folder is executed: no program code that a model brings, and nothing of pickled weights but tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...runtime.storage import file_digest
from ...runtime.text.tokenizer import Tokenizer
from .encoder_decoder_families import ENCODER_DECODERS, encoder_decoder_facts, encoder_decoder_settings
from .families import text_settings
from .folder_files import read_json, read_text
from .folder_tokenizer import folder_tokenizer
from .generation_settings import generating, languages_of, said_by
from .model_source import ModelSource, build_config
from .weight_files import PickledWeights, SafetensorsWeights, is_pickled, weight_files

_LICENSES = {"Apache License": "apache-2.0", "MIT License": "mit", "BSD 3-Clause": "bsd-3-clause"}


def read_folder(path: Path) -> tuple[dict[str, Any], list[Path], Tokenizer, str | None]:
    """Settings, weight files, tokenizer and chat template of a Hugging Face folder: all that is read without another
    package.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError.
    """
    settings = read_json(path / "config.json", required=True)
    is_pair = settings.get("model_type") in ENCODER_DECODERS
    settings = encoder_decoder_settings(settings, path) if is_pair else text_settings(settings, path)
    return settings, weight_files(path), *folder_tokenizer(path, settings)


def open_folder(path: Path) -> ModelSource:
    """The model in a Hugging Face folder.

    Raises ModelNotFoundError, ModelFileError and UnsupportedModelError, all before a weight is read.
    """
    settings, files, tokenizer, template = read_folder(path)
    said = said_by(read_json(path / "generation_config.json"), read_json(path / "config.json"))
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
        model_id=_model_id(path, settings),
        license=_license(path),
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
        generating=generating(said, int(config.vocab_size), languages),
    )


def _model_id(path: Path, settings: Mapping[str, Any]) -> str:
    """The name it is known by: a hub's cache folder says it, else the configuration, else the folder's own name."""
    for part in reversed(path.resolve().parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    name = settings.get("_name_or_path")
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    return path.resolve().name


def _license(path: Path) -> str | None:
    """What the model card says, else what the license file begins with; None where neither is there."""
    if (path / "README.md").is_file():
        front = re.match(r"---\n(.*?)\n---", read_text(path / "README.md"), re.DOTALL)
        said = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([^'\"\n]+)", front[1], re.M)) if front else {}
        if said.get("license") not in (None, "other"):
            return str(said["license"]).strip()
        if "license_name" in said:
            return str(said["license_name"]).strip()
    for file in sorted(path.glob("LICENSE*")):
        if file.is_file():
            lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
            first = lines[0] if lines else ""
            return (
                next((name for words, name in _LICENSES.items() if words.lower() in first.lower()), first[:80]) or None
            )
    return None
