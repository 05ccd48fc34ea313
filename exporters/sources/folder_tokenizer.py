"""The tokenizer of a Hugging Face folder: its tokenizer.json, or what a family keeps instead of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from ...runtime.errors import ModelFileError
from ...runtime.files.folder_files import chat_template_in, json_object, with_ends
from ...runtime.text.library_tokenizer import read_tokenizer
from ...runtime.text.piece_names import NAMELESS
from ...runtime.text.tokenizer import Tokenizer
from .own_tokenizers import made_of_files
from .translators import Framed, class_of, frame_of


def folder_tokenizer(path: Path, settings: Mapping[str, Any]) -> tuple[Tokenizer, str | None]:
    """Tokenizer and chat template of a folder. settings: config.json.

    Raises ModelFileError and UnsupportedModelError.
    """
    said = json_object(path / "tokenizer_config.json")
    inner, framed = _made(path, settings, said)
    _frame(inner, framed, path)
    own = bool(framed.before or framed.behind)
    return with_ends(inner, path, settings, framed=own), chat_template_in(path)


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
