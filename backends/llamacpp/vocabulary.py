"""Vocabularies that are not known here, cut and put together by llama.cpp's own functions.

It has a rule for each pre-tokenizer by name, and kinds of vocabularies of its own (RWKV, PLaMo); what it says is right
by definition for a file made for it. Tokenizers that are known here stay in use where they are.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.text.library_tokenizer import special_pattern
from ...runtime.text.token_bytes import Decoding
from ...runtime.text.tokenizer import Tokenizer, require_unicode
from .library import library
from .placement import load_vocabulary

_UNKNOWN, _CONTROL, _OWN, _LSTRIP, _RSTRIP = 1, 8, 16, 128, 256  # LLAMA_TOKEN_ATTR_*


class LlamaCppTokenizer(Tokenizer):
    """The vocabulary of a .gguf file that llama.cpp has read before, in another process."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFileError, and UnsupportedModelError for a file without a vocabulary."""
        self._lib: Any = library()
        self._model = load_vocabulary(path)
        self._vocab = vocab = self._lib.llama_model_get_vocab(self._model.pointer)
        self.vocab_size = int(self._lib.llama_vocab_n_tokens(vocab))
        if not self.vocab_size or self._lib.llama_vocab_type(vocab) == self._lib.LLAMA_VOCAB_TYPE_NONE:
            raise UnsupportedModelError(f"{path} holds no vocabulary; convert the model again, with its tokenizer.")
        kinds = [self._lib.llama_vocab_get_attr(vocab, i) for i in range(self.vocab_size)]
        self._added = {
            i: AddedToken(
                self._text_of(i),
                special=bool(kind & (_UNKNOWN | _CONTROL)),
                normalized=False,
                lstrip=bool(kind & _LSTRIP),
                rstrip=bool(kind & _RSTRIP),
            )
            for i, kind in enumerate(kinds)
            if kind & (_UNKNOWN | _CONTROL | _OWN)
        }
        self._special = {token.content: i for i, token in self._added.items() if token.special}
        self._special_pattern = special_pattern([token for token in self._added.values() if token.special])
        self._forgeable = frozenset(self._special.values()).difference(self._cut("\U0010ffff"))
        self._pieces: dict[int, bytes] = {}
        self._ids: dict[str, int] | None = None
        self._decoding = Decoding()
        letter = b"".join(self.piece(i) for i in self._cut("a"))
        self._decoding = Decoding(leading_spaces=len(letter) - len(letter.lstrip(b" ")))
        bos, eos = int(self._lib.llama_vocab_bos(vocab)), int(self._lib.llama_vocab_eos(vocab))
        self.bos_id = bos if 0 <= bos < self.vocab_size else None
        self.eos_id = eos if 0 <= eos < self.vocab_size else None
        named = {*self._added, *([] if self.eos_id is None else [self.eos_id])}
        self.eos_ids = frozenset(i for i in named if self._lib.llama_vocab_is_eog(vocab, i))
        self.add_bos = bool(self._lib.llama_vocab_get_add_bos(vocab)) and self.bos_id is not None

    def save(self, path: Path) -> None:
        raise self._no_file()

    def token(self, token_id: int) -> str | None:
        return self._text_of(token_id) if self.piece(token_id, special=True) else None  # else it is not in use

    def id_of(self, token: str) -> int | None:
        if self._ids is None:
            named = ((self.token(i), i) for i in range(self.vocab_size))
            self._ids = {text: i for text, i in named if text is not None}
        return self._ids.get(token)

    @property
    def starts_with(self) -> int | None:
        return self.bos_id if self.add_bos else None

    def description(self) -> dict[str, Any]:
        raise self._no_file()

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            return b""
        if special and token_id in self._added:
            return self._piece(token_id, special=True)
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._piece(token_id, special=False)
        return known

    def _frame(self) -> tuple[list[int], list[int]]:
        alone, whole = self._cut("a"), self._cut("a", framed=True)
        n_around = len(whole) - len(alone)
        at = next((i for i in range(n_around + 1) if whole[i : i + len(alone)] == alone), 0)
        return whole[:at], whole[at + len(alone) :]

    def _plain(self, text: str, first: bool) -> list[int]:
        ids = self._cut(text)
        if self._forgeable.isdisjoint(ids):
            return ids
        # Merges, too, can make a special token, for it is in the vocabulary: then letter by letter.
        return [j for i in ids for j in (self._spelled(i) if i in self._forgeable else (i,))]

    def _spelled(self, token_id: int) -> list[int]:
        return [i for letter in self._added[token_id].content for i in self._cut(letter)]

    def _cut(self, text: str, framed: bool = False) -> list[int]:
        """The tokens of a text that holds no special ones. framed: with those that it puts around a text."""
        require_unicode(text)
        data, room = text.encode(), len(text.encode()) + 8
        found = (ctypes.c_int32 * room)()
        n = self._lib.llama_tokenize(self._vocab, data, len(data), found, room, framed, False)
        if n < 0:  # it needs more room than a token for each byte
            found = (ctypes.c_int32 * -n)()
            n = self._lib.llama_tokenize(self._vocab, data, len(data), found, -n, framed, False)
        if n < 0:
            raise ModelFileError("llama.cpp's vocabulary functions could not cut a text into tokens.")
        return list(found[:n])

    def _piece(self, token_id: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._lib.llama_token_to_piece(self._vocab, token_id, buffer, size, 0, special)
            if n >= 0:
                return bytes(buffer.raw[:n])
            size = -n

    def _text_of(self, token_id: int) -> str:
        text: bytes | None = self._lib.llama_vocab_get_text(self._vocab, token_id)
        return (text or b"").decode("utf-8", "replace")

    @staticmethod
    def _no_file() -> UnsupportedModelError:
        return UnsupportedModelError(
            "this vocabulary is one that only llama.cpp reads: it cannot be written as a tokenizer.json. Export from "
            "the model's Hugging Face folder instead."
        )
