"""What lies in a Hugging Face folder beside its weights: tokenizer, chat template and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from ..text.tokenizer import Tokenizer


def settings_in(path: Path) -> dict[str, Any]:
    """The entries of the folder's config.json. Raises ModelNotFoundError and ModelFileError."""
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} holds no config.json: it is not a Hugging Face model folder.")
    return json_object(path / "config.json")


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is absent. Raises ModelFileError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}. Fetch or copy it again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object. Fetch or copy it again.")
    return value


def require_tokenizer(path: Path) -> Path:
    """The tokenizer.json of a folder. Raises UnsupportedModelError where there is none."""
    if not (path / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            f"{path} has no tokenizer.json. Where it has another tokenizer, transformers' AutoTokenizer can load it "
            "and save_pretrained() writes the file."
        )
    return path / "tokenizer.json"


def tokenizer_in(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a folder. settings: of its config.json."""
    file = require_tokenizer(path)
    said = json_object(path / "tokenizer_config.json")
    generation = json_object(path / "generation_config.json")
    plain = Tokenizer.from_file(file)
    bos_id = _special_id(plain, said.get("bos_token"))
    ends = [_special_id(plain, said.get("eos_token"))]
    for found in (generation.get("eos_token_id"), settings.get("eos_token_id")):
        ends += found if isinstance(found, list) else [found]
    whole = [end for end in ends if isinstance(end, int) and not isinstance(end, bool) and 0 <= end < plain.vocab_size]
    if bos_id is None and plain.starts_with is not None:
        bos_id = plain.starts_with
    add = said.get("add_bos_token")
    add_bos = add if isinstance(add, bool) else plain.starts_with is not None and plain.starts_with == bos_id
    return Tokenizer.from_file(file, bos_id=bos_id, eos_ids=list(dict.fromkeys(whole)), add_bos=add_bos)


def _special_id(tokenizer: Tokenizer, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.id_of(text) if isinstance(text, str) else None


def chat_template_in(path: Path) -> str | None:
    """The jinja2 text of a folder's chat template; of several the one that is named default."""
    if (path / "chat_template.jinja").is_file():
        return _text(path / "chat_template.jinja")
    said, apart = json_object(path / "tokenizer_config.json"), json_object(path / "chat_template.json")
    for found in (said.get("chat_template"), apart.get("chat_template")):
        if isinstance(found, str):
            return found
        if isinstance(found, list):  # several, named
            named = {part.get("name"): part.get("template") for part in found if isinstance(part, dict)}
            default = named.get("default")
            return default if isinstance(default, str) else None
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
