"""Turns rounds into text that can be shown: no half characters, nothing of a stop string, nothing behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TypeAlias

from ..errors import OptionError
from ..interfaces import Round
from ..several import several
from .tokenizer import Tokenizer

Stop: TypeAlias = str | int | Sequence[str | int] | None


def stops_of(stop: Stop, tokenizer: Tokenizer, vocab_size: int) -> tuple[tuple[str, ...], frozenset[int]]:
    """The texts and the token ids that end an answer. The text of a special token is looked for, and its id, too.

    Raises OptionError for what is neither, for an empty text and for an id that the model does not have.
    """
    texts: list[str] = []
    ids: set[int] = set()
    wanted: tuple[object, ...] = several(stop)
    for one in wanted:
        if isinstance(one, str):
            if not one:
                raise OptionError("a stop string is empty, so nothing could ever be generated; leave it out.")
            texts.append(one)
            ids |= tokenizer.special_ids(one)
        elif isinstance(one, Integral) and not isinstance(one, bool):
            if not 0 <= int(one) < vocab_size:
                raise OptionError(f"stop holds the token id {one}, but the model's are 0..{vocab_size - 1}.")
            ids.add(int(one))
        else:
            raise OptionError(f"stop holds {one!r}, but must be a text, a token id, or several of them.")
    return tuple(texts), frozenset(ids)


class Collected:
    """The pieces and the tokens of an answer so far."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._ids: list[int] = []

    @property
    def text(self) -> str:
        return "".join(self._shown)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._ids)


class TextAssembler(Collected):
    """Collects tokens and text of one answer and finds the first stop string.

    Tokens are looked at one by one, so where an answer ends does not depend on how many a round committed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        stop: tuple[str, ...],
        *,
        behind: Iterable[int] = (),
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """behind: the tokens whose text the answer goes on in; none for an answer that is a text of its own.
        shown: special tokens whose text is wanted."""
        super().__init__()
        self._stream = tokenizer.stream(behind=behind, shown=shown)
        self._stop_ids = stop_ids
        self._stop = stop
        self._longest = max((len(s) for s in stop), default=0)
        self._held = ""  # decided, but perhaps the beginning of a stop string
        self._ended = False

    def push(self, done: Round) -> tuple[str, Round]:
        """Text that is now certain, and the round, cut where a stop string was completed."""
        if not self._stop:  # nothing is ever held back, and a stop id is the last token of its round
            self._ids += done.tokens
            ends = len(done.tokens) > 0 and done.tokens[-1] in self._stop_ids
            piece = self._stream.push(done.tokens[:-1] if ends else done.tokens)
            self._shown.append(piece)
            return piece, done
        pieces: list[str] = []
        for i, token in enumerate(done.tokens):
            self._ids.append(token)
            if token in self._stop_ids:
                break
            self._held += self._stream.push([token])
            cut = self._first_stop()
            if cut is not None:
                self._held, self._ended = self._held[:cut], True
                done = replace(
                    done, tokens=done.tokens[: i + 1], accepted=min(done.accepted, i + 1), finish_reason="stop"
                )
                break
            pieces.append(self._release(self._certain()))
        return "".join(pieces), done

    def finish(self) -> str:
        """What was still held back, once it is known that nothing follows."""
        if not self._ended:
            self._held += self._stream.finish()
            cut = self._first_stop()
            self._held = self._held if cut is None else self._held[:cut]
        return self._release(len(self._held))

    def _first_stop(self) -> int | None:
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        return min(found) if found else None

    def _certain(self) -> int:
        """Length of the held text that cannot belong to a stop string any more."""
        for n in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stop):
                return len(self._held) - n
        return len(self._held)

    def _release(self, n: int) -> str:
        piece, self._held = self._held[:n], self._held[n:]
        self._shown.append(piece)
        return piece
