"""The tokenizer of a Hugging Face folder: its tokenizer.json, or what a family keeps instead of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from ...runtime.errors import ModelFileError
from ...runtime.text.piece_names import NAMELESS
from ...runtime.text.tokenizer import Tokenizer, read_tokenizer
from .folder_files import read_json, read_text
from .own_tokenizers import made_of_files
from .translators import Framed, class_of, frame_of


def folder_tokenizer(path: Path, settings: Mapping[str, Any]) -> tuple[Tokenizer, str | None]:
    """Tokenizer and chat template of a folder. settings: config.json.

    Raises ModelFileError and UnsupportedModelError.
    """
    said = read_json(path / "tokenizer_config.json")
    generation = read_json(path / "generation_config.json")
    inner, framed = _made(path, settings, said)
    _frame(inner, framed, path)
    plain = Tokenizer(inner)
    bos_id = _special_id(plain, said.get("bos_token"))
    ends = [_special_id(plain, said.get("eos_token"))]
    for found in (generation.get("eos_token_id"), settings.get("eos_token_id")):
        ends += found if isinstance(found, list) else [found]
    whole = [end for end in ends if isinstance(end, int) and not isinstance(end, bool) and 0 <= end < plain.vocab_size]
    starts = None if framed.before or framed.behind else plain.starts_with  # which is a language, where one is named
    if bos_id is None and starts is not None:
        bos_id = starts
    add = said.get("add_bos_token")
    add_bos = add if isinstance(add, bool) else starts is not None and starts == bos_id
    tokenizer = Tokenizer(inner, bos_id=bos_id, eos_ids=list(dict.fromkeys(whole)), add_bos=add_bos)
    return tokenizer, _chat_template(path, said)


def _made(path: Path, settings: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, Framed]:
    """What cuts texts, and what it puts around each where its own rules do not say that."""
    if (path / "tokenizer.json").is_file():
        inner = read_tokenizer(path / "tokenizer.json")
        return inner, frame_of(class_of(said, settings), said, inner.token_to_id)
    inner, framed = made_of_files(path, settings, said)
    n_tokens, n_rows = inner.get_vocab_size(), settings.get("vocab_size")
    named = inner.token_to_id(NAMELESS)
    n_tokens = n_tokens if named is None else named
    if isinstance(n_rows, int) and n_tokens > n_rows:
        raise ModelFileError(
            f"the tokenizer in {path} has {n_tokens} tokens, but the model {n_rows}: its files do not belong together. "
            "Fetch or copy the model again."
        )
    return inner, framed


def _frame(inner: tokenizers.Tokenizer, framed: Framed, path: Path) -> None:
    """Put these tokens around every text. Raises ModelFileError."""
    around = (*framed.before, *framed.behind)
    if not around:
        return
    ids = {token: inner.token_to_id(token) for token in around}
    for token, found in ids.items():
        if found is None:
            raise ModelFileError(
                f"{path / 'tokenizer_config.json'} names {token!r} (src_lang or eos_token), and the vocabulary has no "
                "token of that name. Correct it there."
            )
    inner.post_processor = processors.TemplateProcessing(
        single=[*framed.before, "$A", *framed.behind], special_tokens=list(ids.items())
    )


def _special_id(tokenizer: Tokenizer, token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.id_of(text) if isinstance(text, str) else None


def _chat_template(path: Path, said: Mapping[str, Any]) -> str | None:
    if (path / "chat_template.jinja").is_file():
        return read_text(path / "chat_template.jinja")
    for found in (said.get("chat_template"), read_json(path / "chat_template.json").get("chat_template")):
        if isinstance(found, str):
            return found
        if isinstance(found, list):  # several, named
            named = {part.get("name"): part.get("template") for part in found if isinstance(part, dict)}
            default = named.get("default")
            return default if isinstance(default, str) else None
    return None
