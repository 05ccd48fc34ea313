"""Text to token ids and back, and text that streams without ever showing half a character."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ..errors import ModelFileError, OptionError
from ..interfaces import Tokens
from ..storage import temporary_name, write_error
from .library_tokenizer import read_tokenizer, special_pattern, without_first_space, without_special
from .piece_names import piece_names
from .special_tokens import ends_among
from .token_bytes import decoding_of, unmarked


class Tokenizer:
    """A tokenizer, byte-level or in the manner of SentencePiece. Immutable once made, so threads may share it.

    bos_id, eos_ids, add_bos: what tokenizer.json does not say. The first of eos_ids is the one that chat templates
        write (`eos_id`); every added token that is known to end a turn counts as an end, too. add_bos: whether a
        text of its own starts with bos_id.
    vocab_size: number of token ids; the model may have more rows of logits.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        add_bos: bool = False,
    ) -> None:
        self._decoding = decoding_of(inner)
        inner.encode_special_tokens = True  # for the library: text that looks like a special token stays text
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._of_text = without_special(inner)
        self._after_first = without_first_space(self._of_text)
        self._added = inner.get_added_tokens_decoder()
        special = {token.content: i for i, token in self._added.items() if token.special}
        self._special = special
        self._special_pattern = special_pattern([token for token in self._added.values() if token.special])
        unknown = self._of_text.encode("\U0010ffff", add_special_tokens=False).ids
        self._forgeable = frozenset(special.values()).difference(unknown)
        self._pieces: dict[int, bytes] = {}
        self._names = piece_names(inner)
        n_tokens = max(inner.get_vocab_size(), 1 + max(self._added, default=-1))
        self.vocab_size = n_tokens if self._names is None else self._names.end
        for i in (*eos_ids, *([] if bos_id is None else [bos_id])):
            if not 0 <= i < self.vocab_size:
                raise ModelFileError(
                    f"token id {i} is named as special, but the vocabulary ends at {self.vocab_size}. Fetch or copy "
                    "the model again."
                )
        self.bos_id = bos_id
        self.eos_id = eos_ids[0] if eos_ids else None
        self.eos_ids = ends_among({token.content: i for i, token in self._added.items()}, eos_ids)
        self.add_bos = add_bos and bos_id is not None

    @classmethod
    def from_file(
        cls, path: Path, *, bos_id: int | None = None, eos_ids: Sequence[int] = (), add_bos: bool = False
    ) -> Tokenizer:
        """The tokenizer in a tokenizer.json. Raises ModelNotFoundError, ModelFileError, UnsupportedModelError."""
        return cls(read_tokenizer(path), bos_id=bos_id, eos_ids=eos_ids, add_bos=add_bos)

    @property
    def plain_size(self) -> int:
        """Number of tokens without those that were added to the vocabulary."""
        return int(self._inner.get_vocab_size(with_added_tokens=False))

    def save(self, path: Path) -> None:
        """Write tokenizer.json. Raises CacheWriteError."""
        temporary = temporary_name(path)
        try:
            self._inner.save(str(temporary), pretty=False)
            temporary.replace(path)
        except Exception as error:  # the library raises plain Exception where a file cannot be written
            reason = error if isinstance(error, OSError) else OSError(str(error))
            raise write_error(path.parent, reason) from error
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def ordered_eos_ids(self) -> tuple[int, ...]:
        """All of eos_ids with eos_id first: what a manifest keeps and `from_file` takes."""
        first = () if self.eos_id is None else (self.eos_id,)
        return (*first, *sorted(self.eos_ids.difference(first)))

    @property
    def special_tokens(self) -> frozenset[str]:
        """The text of every special token: what a chat template may write and a message may not."""
        return frozenset(self._special)

    def special_ids(self, text: str) -> frozenset[int]:
        """The ids of special tokens with exactly this text; none where it is no special token's."""
        return frozenset(i for i, token in self._added.items() if token.special and token.content == text)

    @property
    def named_tokens(self) -> Mapping[str, int]:
        """The tokens that no text is cut into, by their text, of a vocabulary that names SentencePiece's pieces."""
        return {} if self._names is None else self._names.others

    def token(self, token_id: int) -> str | None:
        """The text of one special or added token, as in the vocabulary for others; None for an id without a token."""
        text: str | None = self._inner.id_to_token(token_id)
        return None if text is None else unmarked(text) or None

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary; None for an unknown one."""
        token_id: int | None = self._inner.token_to_id(token)
        return token_id

    @property
    def starts_with(self) -> int | None:
        """The token that the tokenizer.json itself puts before every text; None where it puts none there."""
        with_it = self._inner.encode("a").ids
        n = len(with_it) - len(self._inner.encode("a", add_special_tokens=False).ids)
        return int(with_it[0]) if n > 0 and with_it[0] in self._added else None

    def description(self) -> dict[str, Any]:
        """The tokenizer.json, as an object: vocabulary, merges and rules."""
        described: dict[str, Any] = json.loads(self._inner.to_str())
        return described

    def encode(self, text: str, special: bool = False, *, bos: bool | None = None) -> Tokens:
        """Token ids of a text, (n,).

        special: whether "<|im_end|>" in the text means the special token. Only for text that nobody else can write
            into; see chat_template.encode_chat.
        bos: whether bos_id comes first; None is what the model was trained with (add_bos).
        """
        pieces = self.split_special(text) if special else [text]
        return self.encode_pieces(pieces, bos=bos)

    def encode_source(self, text: str, special: bool = False) -> Tokens:
        """Token ids of a text as the encoder of an encoder-decoder model was trained to read it, (n,): between the
        special tokens that tokenizer.json puts around a text of its own. special: as in encode()."""
        before, after = self._frame()
        return np.array([*before, *self.encode(text, special, bos=False), *after], dtype=np.int64)

    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens around a text."""
        alone: list[int] = self._inner.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._inner.encode("a").ids
        n_around = len(whole) - len(alone)
        at = next((i for i in range(n_around + 1) if whole[i : i + len(alone)] == alone), 0)
        return whole[:at], whole[at + len(alone) :]

    def encode_pieces(self, pieces: Iterable[str | int], *, bos: bool | None = None) -> Tokens:
        """Token ids of plain texts with the ids of special tokens between them, (n,)."""
        ids: list[int] = []
        if self.bos_id is not None and (self.add_bos if bos is None else bos):
            ids.append(self.bos_id)
        for at, piece in enumerate(piece for piece in pieces if piece != ""):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._plain(piece, first=at == 0)
        return np.array(ids, dtype=np.int64)

    def split_special(self, text: str) -> list[str | int]:
        """The text cut at its special tokens, which become ids."""
        if self._special_pattern is None:
            return [text]
        pieces: list[str | int] = []
        end = 0
        for match in self._special_pattern.finditer(text):
            pieces += [text[end : match.start()], self._special[match.group(match.lastgroup or 0)]]
            end = match.end()
        return [*pieces, text[end:]]

    def _plain(self, text: str, first: bool) -> list[int]:
        """first: the text begins here; some tokenizers begin it with a space."""
        inner = self._of_text if first or self._after_first is None else self._after_first
        led, text = self._names.led(text) if self._names is not None and first else ([], text)
        try:
            found = inner.encode(text, add_special_tokens=False)
        except TypeError:
            require_unicode(text)
            raise
        ids: list[int] = found.ids if self._names is None else [*led, *self._names.of(found)]
        if self._forgeable.isdisjoint(ids):
            return ids
        # Merges, too, can make a special token, for it is in the vocabulary.
        return [j for i in ids for j in (self._spelled(i) if i in self._forgeable else (i,))]

    def _spelled(self, token_id: int) -> list[int]:
        """The text of a special token, letter by letter."""
        letters = self._decoding.letters(self._added[token_id].content)
        return [token.id for letter in letters for token in self._inner.model.tokenize(letter)]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of these tokens. Bytes that are not UTF-8 become U+FFFD, special tokens nothing unless asked for.

        They are a text of their own: where it begins with a space that its writer did not mean, that space is left
        out. What goes on in another text is decoded by stream(behind=...).
        """
        text = b"".join(self.piece(int(i), special=special) for i in ids)
        return self._decoding.without_leading(text).decode("utf-8", "replace")

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes one token stands for, perhaps a part of a character; b"" for ids beyond the vocabulary."""
        added = self._added.get(token_id)
        if added is not None:
            return self._decoding.written(added.content).encode() if special or not added.special else b""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._decoding.piece(self._inner.id_to_token(token_id) or "")
        return piece

    def stream(
        self, *, special: bool = False, behind: Iterable[int] = (), shown: frozenset[int] = frozenset()
    ) -> TextStream:
        """A decoder for tokens that arrive one after another. behind: the tokens whose text they go on in.

        shown: special tokens that have a text all the same.
        """
        begun = self._decoding.leading_spaces > 0 and any(self.piece(int(i), special=special) for i in behind)
        return TextStream(self, 0 if begun else self._decoding.leading_spaces, special=special, shown=shown)


class TextStream:
    """Text of tokens as they arrive. All that it returned, put together, is `decode` of all tokens.

    Behind other tokens it is what `decode` of all of them has more than that of the others alone.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        leading_spaces: int,
        *,
        special: bool = False,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """leading_spaces: how many the beginning of the text loses."""
        self._tokenizer = tokenizer
        self._special, self._shown = special, shown
        self._leading = leading_spaces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Text that is certain now; a character that is not complete yet is held back."""
        special, shown = self._special, self._shown
        text = b"".join(self._tokenizer.piece(int(i), special=special or i in shown) for i in ids)
        while self._leading and text:
            if text[:1] == b" ":
                text, self._leading = text[1:], self._leading - 1
            else:
                self._leading = 0
        return self._decoder.decode(text)

    def finish(self) -> str:
        """What was held back, as U+FFFD, since nothing can complete it any more."""
        return self._decoder.decode(b"", final=True)


def require_unicode(text: str) -> None:
    """Raise OptionError for a text that cannot be written as bytes."""
    at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
    if at is not None:
        message = f"the text is not valid Unicode: character {at} is half a surrogate pair. Send it as UTF-8."
        raise OptionError(message) from None
