"""A SentencePiece model file (.model, .spm), read without another package.

Source: sentencepiece, sentencepiece_model.proto; the encoding of protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.lfs_pointer import refuse_pointer
from ...runtime.text.gguf_vocabulary import BYTE, NORMAL, UNKNOWN

Field: TypeAlias = tuple[int, int | memoryview]

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # how a field is written
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the file
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_ALGORITHM, _SPACE_BEHIND = 3, 24  # of how it was trained
_CHARSMAP, _PREFIX, _MERGED, _ESCAPED = 2, 3, 4, 5  # of how texts are made ready
_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """Pieces by their ids, and how a text is cut into them.

    types: those of GGUF's vocabularies, which are SentencePiece's. charsmap: what characters are replaced by, as the
    file has it. prefixed: a text begins with a space that nobody wrote. merged: spaces at its ends are dropped, and
    several in a row are one.
    """

    path: Path
    kind: Literal["unigram", "bpe"]
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    charsmap: bytes
    prefixed: bool
    merged: bool

    @property
    def unknown(self) -> int:
        """The piece for what is unknown."""
        return self.types.index(UNKNOWN)

    @property
    def spells_bytes(self) -> bool:
        """Whether what is unknown is spelled in bytes."""
        return BYTE in self.types


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The model in a file. Raises ModelFileError for a damaged one, and UnsupportedModelError for kinds not built."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        found = _parsed(path, data)
    except (ValueError, IndexError, struct.error, TypeError) as error:
        refuse_pointer(path)
        raise ModelFileError(f"{path} is not a SentencePiece model: {error}. Fetch or copy it again.") from error
    if len(set(found.texts)) != len(found.texts):
        raise ModelFileError(f"{path} has the same piece twice. Fetch or copy it again.")
    if UNKNOWN not in found.types:
        raise ModelFileError(f"{path} has no piece for what is unknown. Fetch or copy it again.")
    return found


def _parsed(path: Path, data: memoryview) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trained: dict[int, int | memoryview] = {}
    ready: dict[int, int | memoryview] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_part(value)))
        elif number == _TRAINER:
            trained |= dict(_fields(_part(value)))
        elif number == _NORMALIZER:
            ready |= dict(_fields(_part(value)))
    if not pieces:
        raise ValueError("it holds no pieces")
    kind = _ALGORITHMS.get(_number(trained.get(_ALGORITHM, 1)))
    if kind not in ("unigram", "bpe"):
        raise UnsupportedModelError(f"{path} cuts texts by {kind}: not yet; unigram and bpe are known.")
    if _number(trained.get(_SPACE_BEHIND, 0)) or not _number(ready.get(_ESCAPED, 1)):
        raise UnsupportedModelError(f"{path} writes spaces behind words, or as they are: not yet.")
    texts, scores, types = zip(*pieces, strict=True)
    return SentencePieceModel(
        path=path,
        kind="unigram" if kind == "unigram" else "bpe",
        texts=texts,
        scores=scores,
        types=types,
        charsmap=bytes(_part(ready.get(_CHARSMAP, memoryview(b"")))),
        prefixed=bool(_number(ready.get(_PREFIX, 1))),
        merged=bool(_number(ready.get(_MERGED, 1))),
    )


def _piece(data: memoryview) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == _TEXT:
            text = bytes(_part(value)).decode()
        elif number == _SCORE:
            (score,) = struct.unpack("<f", _part(value))
        elif number == _KIND:
            kind = _number(value)
    if not text:
        raise ValueError("it holds a piece without a text")
    if score != score or score in (float("inf"), float("-inf")):
        raise ValueError(f"the piece {text!r} has the score {score}")
    return text, score, kind


def _fields(data: memoryview) -> Iterator[Field]:
    """Number and value of each field of a message: a number, or bytes. Raises ValueError for what is none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError("it is cut short or damaged")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number, and where the next thing begins."""
    value = shift = 0
    while shift < 64:
        if at >= len(data):
            raise ValueError("it is cut short or damaged")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is cut short or damaged")


def _part(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it has a number where there should be bytes")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("it has bytes where there should be a number")
    return value
