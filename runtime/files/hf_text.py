"""The text side of a folder in Hugging Face's layout: tokenizer, chat template, and files of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from ..text.tokenizer import Tokenizer


def read_text_side(path: Path, settings: Mapping[str, Any]) -> tuple[Tokenizer, str | None]:
    """Tokenizer and chat template."""
    if not (path / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            f"{path} has no tokenizer.json. Where it has another tokenizer, transformers' AutoTokenizer can load it "
            "and save_pretrained() writes the file."
        )
    said = read_object(path / "tokenizer_config.json")
    generation = read_object(path / "generation_config.json")
    plain = Tokenizer.from_file(path / "tokenizer.json")
    bos_id = _special_id(plain, said.get("bos_token"))
    ends = [_special_id(plain, said.get("eos_token"))]
    for found in (generation.get("eos_token_id"), settings.get("eos_token_id")):
        ends += found if isinstance(found, list) else [found]
    whole = [end for end in ends if isinstance(end, int) and not isinstance(end, bool) and 0 <= end < plain.vocab_size]
    if bos_id is None and plain.starts_with is not None:
        bos_id = plain.starts_with
    add = said.get("add_bos_token")
    add_bos = add if isinstance(add, bool) else plain.starts_with is not None and plain.starts_with == bos_id
    tokenizer = Tokenizer.from_file(
        path / "tokenizer.json", bos_id=bos_id, eos_ids=list(dict.fromkeys(whole)), add_bos=add_bos
    )
    return tokenizer, _chat_template(path, said)


def _special_id(tokenizer: Tokenizer, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.id_of(text) if isinstance(text, str) else None


def _chat_template(path: Path, said: Mapping[str, Any]) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return read_text(path / "chat_template.jinja")
    for found in (said.get("chat_template"), read_object(path / "chat_template.json").get("chat_template")):
        if isinstance(found, str):
            return found
        if isinstance(found, list):  # several, named
            named = {part.get("name"): part.get("template") for part in found if isinstance(part, dict)}
            default = named.get("default")
            return default if isinstance(default, str) else None
    return None


def read_object(path: Path, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is absent and need not be there."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise ModelNotFoundError(
                f"{path.parent} holds no {path.name}: it is not a Hugging Face model folder."
            ) from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}. Fetch or copy it again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} does not hold a JSON object. Fetch or copy it again.")
    return value


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
