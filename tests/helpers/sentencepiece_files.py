"""SentencePiece model files of a few pieces, written by hand: protocol buffers, as the library writes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD = 1, 2, 3
Piece = tuple[str, float, int]

SPECIAL: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
LETTERS = "▁abcdefghiklmnoprstuw"
WORDS = ("▁the", "▁shark", "▁fish", "▁s", "sh", "ar", "ark", "▁pi", "lot", "▁f", "ish", "▁sh", "▁a", "th", "he", "▁t")


def pieces(*more: str) -> list[Piece]:
    """Three special pieces, words with falling scores, and letters."""
    words = [(text, -2.0 - 0.25 * i, NORMAL) for i, text in enumerate((*more, *WORDS))]
    return [*SPECIAL, *words, *((text, -9.0 - 0.125 * i, NORMAL) for i, text in enumerate(LETTERS))]


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _bytes(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def write_sentencepiece(
    path: Path, found: Sequence[Piece], kind: int = UNIGRAM, *, merged: bool = True, prefixed: bool = True
) -> Path:
    """A model of these pieces. merged, prefixed: what it does to spaces."""
    written = b"".join(
        _bytes(1, _bytes(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _number(3, type))
        for text, score, type in found
    )
    ready = _bytes(1, b"identity") + _number(3, int(prefixed)) + _number(4, int(merged))
    path.write_bytes(written + _bytes(2, _number(3, kind)) + _bytes(3, ready))
    return path
