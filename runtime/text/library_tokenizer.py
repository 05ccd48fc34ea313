"""The library's tokenizers: read from a file, and copies of one that cut a text otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tokenizers

from ..errors import ModelFileError, ModelNotFoundError
from ..lfs_pointer import refuse_pointer
from .token_bytes import marked


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """What a tokenizer.json describes. Raises ModelNotFoundError and ModelFileError."""
    try:
        return tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}.") from None
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the text
        refuse_pointer(path)
        raise ModelFileError(f"{path} is not a tokenizer.json: {error}.") from error


def special_pattern(tokens: list[tokenizers.AddedToken]) -> re.Pattern[str] | None:
    """Finds special tokens, the longest first, with the white space that lstrip and rstrip let them swallow."""
    if not tokens:
        return None
    longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    alternatives = (
        (r"\s*" if token.lstrip else "") + f"(?P<t{i}>{re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
        for i, token in enumerate(longest_first)
    )
    return re.compile("|".join(alternatives))


def without_special(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer for texts without special tokens.

    A model that looks for the most probable cut would find them, for they are in its vocabulary: they get names there
    that no text holds.
    """
    described = json.loads(inner.to_str()) if isinstance(inner.model, tokenizers.models.Unigram) else None
    if described is None:
        return inner
    names = {token["content"]: marked("", token["id"]) for token in described["added_tokens"] if token["special"]}
    for token in described["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    for piece in described["model"]["vocab"]:
        piece[0] = names.get(piece[0], piece[0])
    plain = tokenizers.Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True
    return plain


def without_first_space(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer | None:
    """The same tokenizer for texts that continue another; None where it makes no difference.

    Each text between two special tokens is encoded apart, and a rule such as Metaspace's "first" would take each for
    the first.
    """
    if inner.pre_tokenizer is None or '"prepend_scheme":"first"' not in inner.pre_tokenizer.__getstate__().decode():
        return None
    described = inner.to_str().replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
    continued = tokenizers.Tokenizer.from_str(described)
    continued.encode_special_tokens = True
    return continued
