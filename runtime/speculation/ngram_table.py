"""What a model tends to say after its last few tokens, in a table of fixed size that learns while it is asked.

A slot belongs to a context of one to four tokens, which a hash finds: the token that followed, and how far that can be
trusted. Trust follows what really came, and a slot that is wrong too often takes the newer token, or the newer context
that its hash belongs to as well. So the table forgets what is not said any more, and never grows.
Sources: Luo et al. 2024, Token Recycling (a table that lives on after an answer, fed by what was verified); the trust
is that of branch and value predictors (Lipasti et al. 1996).
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence

from ..checks import whole
from ..errors import ModelFileError

LONGEST = 4  # tokens of a context
_BITS = 18  # of the number of slots: 1.8 MiB
_MOST_BITS = 24
_FIRST = (0, 26, 51, 77, 102)  # trust in what was seen once, of 255, by the number of tokens it followed
_LOW = 48  # trust below which a slot is given to something newer
_RATE = 2  # trust moves by a quarter of the way
_MAGIC = b"PFNG1\n"  # a new one where slots, hashes or trust mean something else
_MIX, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1  # Knuth's multiplicative hashing, on 64 bits


class NGramTable:
    """Contexts and what follows them: 2 ** bits slots of seven bytes, however much is learned."""

    def __init__(self, bits: int = _BITS) -> None:
        n = 1 << whole("the bits of a table's slots", bits, 1, _MOST_BITS)
        self._bits, self._shift = bits, 64 - bits
        self.n_learned = 0  # tokens
        self._tokens, self._checks, self._trust = array("i", [0]) * n, array("H", [0]) * n, array("B", [0]) * n

    @property
    def nbytes(self) -> int:
        return sum(x.itemsize * len(x) for x in self._parts)

    @property
    def _parts(self) -> tuple[array[int], array[int], array[int]]:
        return self._tokens, self._checks, self._trust

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Learn tokens[start:], each from those before it."""
        held, checks, trust = self._tokens, self._checks, self._trust
        self.n_learned += max(len(tokens) - start, 0)
        for at in range(max(start, 1), len(tokens)):
            token, mixed = tokens[at], 0
            for n in range(1, min(LONGEST, at) + 1):
                mixed = (mixed * _MIX + tokens[at - n] + 1) * _MIX & _WORD
                slot, check = mixed >> self._shift, mixed >> 24 & 0xFFFF
                known = trust[slot]
                if checks[slot] == check and held[slot] == token and known:
                    trust[slot] = known + (255 - known >> _RATE)
                elif known < _LOW:
                    held[slot], checks[slot], trust[slot] = token, check, _FIRST[n]
                else:
                    trust[slot] = known - (known >> _RATE)

    def guess(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """The token to follow and how far to trust it, from 0 to 1; None where nothing is known.

        tokens: what stands at the end of a text.
        """
        best, found, mixed = 0, 0, 0
        for n in range(1, min(LONGEST, len(tokens)) + 1):
            mixed = (mixed * _MIX + tokens[-n] + 1) * _MIX & _WORD
            slot = mixed >> self._shift
            if self._trust[slot] >= best and self._checks[slot] == mixed >> 24 & 0xFFFF and self._trust[slot]:
                best, found = self._trust[slot], self._tokens[slot]
        return (found, best / 256.0) if best else None

    def copy(self) -> NGramTable:
        """Another table that knows the same."""
        other = NGramTable(self._bits)
        other._tokens, other._checks, other._trust = self._tokens[:], self._checks[:], self._trust[:]
        other.n_learned = self.n_learned
        return other

    def to_bytes(self) -> bytes:
        """The table as a file holds it, compressed."""
        parts = [self.n_learned.to_bytes(8, "little"), *(x.tobytes() for x in self._parts)]
        return _MAGIC + bytes([self._bits]) + zlib.compress(b"".join(parts))

    @classmethod
    def from_bytes(cls, data: bytes, vocab_size: int) -> NGramTable:
        """The table of a file. Raises ModelFileError for what is none, or not of a model with such a vocabulary."""
        damaged = ModelFileError("this is no table of n-grams, or it is damaged; make it again.")
        start = len(_MAGIC) + 1
        if not data.startswith(_MAGIC) or len(data) < start or not 1 <= data[len(_MAGIC)] <= _MOST_BITS:
            raise damaged
        table = cls(data[len(_MAGIC)])
        try:
            reader = zlib.decompressobj()
            body = reader.decompress(data[start:], 8 + table.nbytes)
        except zlib.error as error:
            raise damaged from error
        if len(body) != 8 + table.nbytes or not reader.eof:
            raise damaged
        table.n_learned, at = int.from_bytes(body[:8], "little"), 8
        for part in table._parts:
            size = part.itemsize * len(part)
            part[:] = array(part.typecode, body[at : at + size])
            at += size
        if min(table._tokens) < 0 or max(table._tokens) >= vocab_size:
            raise damaged
        return table
