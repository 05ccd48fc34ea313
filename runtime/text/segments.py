"""A text cut where sentences and lines end, into segments of a limited number of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_SENTENCE = re.compile(r".*?(?:[.!?][\"')\]]*\s+|\n\s*|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a document. score: the higher, the more it has to do with the question; None: nobody asked."""

    start: int  # in characters of the document
    end: int
    text: str
    n_tokens: int
    score: float | None = None


def cut(document: str, size: int, count: Callable[[str], int]) -> list[Segment]:
    """Segments of at most `size` tokens, which together are the document. count: how many tokens a text has.

    A sentence that is longer than that is cut wherever that is.
    """
    found: list[Segment] = []
    start = end = held = 0
    for piece in _pieces(document, size, count):
        n = count(piece)
        if end > start and held + n > size:
            found.append(Segment(start, end, document[start:end], held))
            start, held = end, 0
        end, held = end + len(piece), held + n
    if end > start:
        found.append(Segment(start, end, document[start:end], held))
    return found


def _pieces(text: str, size: int, count: Callable[[str], int]) -> Iterator[str]:
    """Sentences and lines, with the space behind them; halves of them where they are too long."""
    for match in _SENTENCE.finditer(text):
        todo = [match[0]] if match[0] else []
        while todo:
            piece = todo.pop()
            if len(piece) > 1 and count(piece) > size:
                middle = piece.rfind(" ", 1, len(piece) // 2) + 1 or len(piece) // 2
                todo += [piece[middle:], piece[:middle]]
            else:
                yield piece
