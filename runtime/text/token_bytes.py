"""The bytes that a token stands for: byte-level vocabularies, and those in the manner of SentencePiece.

SentencePiece writes a space as "▁" and a byte without a token of its own as "<0x0A>"; a text begins with a space that
its writer did not mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from ..errors import UnsupportedModelError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MARK = "\ufdd0"  # no character, for use inside programs: no text that is a text holds it
_MARKED = re.compile(rf"(.*){_MARK}\d+", re.DOTALL)


def marked(text: str, token_id: int) -> str:
    """A name for a token that stands for the same bytes as another one, and that no text is cut into."""
    return f"{text}{_MARK}{token_id}"


def unmarked(token: str) -> str:
    """The text of a token, without the mark that tells it from others."""
    found = _MARKED.fullmatch(token) if _MARK in token else None
    return found[1] if found else token


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary. Source: GPT-2, bytes_to_unicode."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_alphabet()
_CHARS = {byte: char for char, byte in BYTES.items()}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the tokens of a vocabulary become text.

    byte_level: each character of a token is a byte. replaced: characters and what they stand for. byte_tokens: tokens
    such as "<0x0A>" are bytes. leading_spaces: how many spaces the beginning of a text loses.
    """

    byte_level: bool = False
    replaced: tuple[tuple[str, str], ...] = ()
    byte_tokens: bool = False
    leading_spaces: int = 0

    def piece(self, token: str) -> bytes:
        """The bytes of one token of the vocabulary, perhaps a part of a character."""
        token = unmarked(token)
        if self.byte_level:
            try:
                return bytes([BYTES[char] for char in token])
            except KeyError:  # not written in the byte alphabet: stands for itself
                return token.encode()
        byte = _BYTE.fullmatch(token) if self.byte_tokens else None
        return bytes([int(byte[1], 16)]) if byte else self.written(token).encode()

    def written(self, token: str) -> str:
        """The text of a token that is no part of a character."""
        token = unmarked(token)
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token

    def letters(self, text: str) -> list[str]:
        """The text's characters as the vocabulary writes them."""
        if self.byte_level:
            return [_CHARS[byte] for byte in text.encode()]
        for old, new in self.replaced:
            text = text.replace(new, old)
        return list(text)

    def without_leading(self, text: bytes) -> bytes:
        """The text without the spaces that its beginning loses."""
        n = len(text) - len(text.lstrip(b" "))
        return text[min(n, self.leading_spaces) :]


def decoding_of(inner: tokenizers.Tokenizer) -> Decoding:
    """How a tokenizer decodes. Raises UnsupportedModelError for kinds other than the two."""
    if inner.decoder is None:
        raise UnsupportedModelError("this tokenizer says nothing about how its tokens become text (no decoder).")
    byte_level, byte_tokens, fused, leading = False, False, False, 0
    replaced = []
    for step in steps(json.loads(inner.decoder.__getstate__()), "decoders"):
        kind = step["type"]
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "Replace" and len(step["pattern"].get("String", "")) == 1:
            replaced.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace":
            replaced.append((step["replacement"], " "))
            leading = 0 if step.get("prepend_scheme", "always") == "never" else 1
        elif kind == "ByteFallback":
            byte_tokens = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and step["content"] == " " and step["stop"] == 0 and fused:
            leading = step["start"]
        else:
            raise UnsupportedModelError(
                f"this tokenizer's tokens become text by {kind}, which is not supported; supported are byte-level "
                "vocabularies and those in the manner of SentencePiece."
            )
    if byte_level and (replaced or byte_tokens or leading):
        raise UnsupportedModelError("this tokenizer mixes byte-level tokens with others, which is not supported.")
    return Decoding(byte_level, tuple(replaced), byte_tokens, leading)


def steps(described: Mapping[str, Any] | None, inside: str) -> Iterator[Mapping[str, Any]]:
    """The steps one after the other; a sequence keeps them under the name `inside`."""
    if described is None:
        return
    if described["type"] == "Sequence":
        for step in described[inside]:
            yield from steps(step, inside)
    else:
        yield described
