"""Vocabularies that name SentencePiece's pieces in an order of their own, as Marian's and M2M100's vocab.json does.

A text is cut into pieces first, and each piece is then looked up by its text. A piece without a name is unknown. What
SentencePiece itself does not know may have a name all the same: that of a token of the other language.
Source: transformers, tokenization_marian.py and tokenization_m2m_100.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import tokenizers

from .token_bytes import marked, unmarked

NAMELESS = marked("<nameless>", 0)  # the token from which on a vocabulary holds pieces without a name


@dataclass(frozen=True, slots=True)
class PieceNames:
    """The tokens of such a vocabulary: those below `end` have names, and `unknown` is read for all others.

    others: tokens that are no pieces, by their text.
    """

    unknown: int
    end: int
    others: dict[str, int]

    def led(self, text: str) -> tuple[list[int], str]:
        """The token that a text begins with by its name, `>>fra<<`, and the rest: so Marian is told a language."""
        code = text[: text.find("<<") + 2] if text.startswith(">>") else ""
        token = self.others.get(code)
        return ([], text) if token is None else ([token], text[len(code) :])

    def of(self, found: tokenizers.Encoding) -> list[int]:
        """The tokens of a text that was cut into pieces."""
        return [self._of(i, text) for i, text in zip(found.ids, found.tokens, strict=True)]

    def _of(self, piece: int, text: str) -> int:
        if piece == self.unknown:
            return self.others.get(text, piece)
        return piece if piece < self.end else self.unknown


def piece_names(inner: tokenizers.Tokenizer) -> PieceNames | None:
    """What a tokenizer says about names; None for one whose pieces are its tokens."""
    end = inner.token_to_id(NAMELESS)
    if end is None:
        return None
    model = json.loads(inner.to_str())["model"]
    unknown = model["unk_id"] if model["type"] == "Unigram" else model["vocab"][model["unk_token"]]
    texts = ((i, inner.id_to_token(i) or "") for i in range(end))
    return PieceNames(unknown, end, {unmarked(text): i for i, text in texts if unmarked(text) != text})
