"""Which tokens a target and its draft share, and the target's text in the draft's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..errors import OptionError
from ..interfaces import Floats, Indices, Tokens
from ..text.tokenizer import Tokenizer

PairKind: TypeAlias = Literal["identical", "padded", "mapped"]

_LEAST_SHARED = 0.05  # of the smaller vocabulary; two vocabularies of language share most of it
_IMPOSSIBLE = np.float32(-1e30)  # finite: a logits processor that leaves nothing else is then no special case


@dataclass(frozen=True, slots=True)
class Pairing:
    """How two vocabularies fit. Only shared tokens are drafted; all text is shown to the draft.

    kind: "identical": every token of the target is the same token, with the same id, in the draft.
        "padded": some tokens of the target are not in the draft (added and special ones, as a rule); all others have
        the same id. "mapped": tokens that stand for the same bytes have other ids.
    target_ids, draft_ids: (n_shared,) the ids of every shared token, target_ids ascending.
    difference: the first token that differs, in words; None where none does.
    """

    kind: PairKind
    target_ids: Indices
    draft_ids: Indices
    difference: str | None = None

    @property
    def n_shared(self) -> int:
        """Tokens that mean the same to both: what may be drafted."""
        return len(self.target_ids)

    @property
    def n_equal_ids(self) -> int:
        """Of them, those with the same id."""
        return int(np.count_nonzero(self.target_ids == self.draft_ids))

    def require(self, kind: PairKind, what: str) -> None:
        """Raise OptionError, naming the first token that differs, unless the pair is at least as close as `kind`.

        what: names the pair in the message.
        """
        order: tuple[PairKind, ...] = ("identical", "padded", "mapped")
        if order.index(self.kind) > order.index(kind):
            raise OptionError(f"{what}: the vocabularies are {self.kind}, not {kind}: {self.difference}.")

    def to_facts(self) -> dict[str, object]:
        """Plain data, for from_facts()."""
        facts: dict[str, object] = {"kind": self.kind, "difference": self.difference}
        if self.kind == "identical":
            return {**facts, "n_shared": self.n_shared}
        return {**facts, "target_ids": self.target_ids.tolist(), "draft_ids": self.draft_ids.tolist()}

    @classmethod
    def from_facts(cls, facts: object) -> Pairing:
        """The pairing that was kept. Raises ValueError for anything that is none."""
        if not isinstance(facts, dict) or facts.get("kind") not in ("identical", "padded", "mapped"):
            raise ValueError("not a pairing")
        difference = facts.get("difference")
        try:
            if facts["kind"] == "identical":
                target = draft = np.arange(int(facts["n_shared"]), dtype=np.int64)
            else:
                target, draft = (np.array(facts[k], dtype=np.int64) for k in ("target_ids", "draft_ids"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("not a pairing") from error
        one_dimensional = target.ndim == draft.ndim == 1 and len(target) == len(draft)
        if not one_dimensional or not len(target) or target[0] < 0 or draft.min() < 0 or (np.diff(target) < 1).any():
            raise ValueError("not a pairing")
        return cls(facts["kind"], target, draft, difference if isinstance(difference, str) else None)


def pair(target: Tokenizer, draft: Tokenizer) -> Pairing:
    """How the vocabularies of a target and a draft fit.

    Raises OptionError, naming the first token that differs, where they share too little to draft anything.
    """
    first = _first_difference(target, draft)
    if first is None:
        ids = np.arange(target.vocab_size, dtype=np.int64)
        return Pairing("identical", ids, ids)
    difference = f"token {first} is {target.token(first)!r} in the target and {draft.token(first)!r} in the draft"
    of_target, of_draft = _ids_by_meaning(target), _ids_by_meaning(draft)
    shared = sorted((i, of_draft[meaning]) for meaning, i in of_target.items() if meaning in of_draft)
    smaller = min(len(of_target), len(of_draft))
    if len(shared) < _LEAST_SHARED * smaller:
        raise OptionError(
            f"these two models cannot be paired: they share {len(shared)} of {smaller} tokens; {difference}. "
            "Use a draft whose tokens are made as the target's are, or draft=None."
        )
    pairs = np.array(shared, dtype=np.int64).reshape(-1, 2)
    moved = bool((pairs[:, 0] != pairs[:, 1]).any())
    return Pairing("mapped" if moved else "padded", pairs[:, 0].copy(), pairs[:, 1].copy(), difference)


def _first_difference(target: Tokenizer, draft: Tokenizer) -> int | None:
    special, draft_special = target.special_tokens, draft.special_tokens
    for i in range(target.vocab_size):
        token, other = target.token(i), draft.token(i)
        if token != other or (token in special) != (other in draft_special):
            return i
    return None


def _ids_by_meaning(tokenizer: Tokenizer) -> dict[tuple[bool, bytes], int]:
    """The lowest id of every (whether it is a special token, bytes it stands for)."""
    special, found = tokenizer.special_tokens, dict[tuple[bool, bytes], int]()
    for i in range(tokenizer.vocab_size):
        name = tokenizer.token(i)
        if name is not None:
            found.setdefault((name in special, tokenizer.piece(i, special=True)), i)
    return found


class Translation:
    """A target's context and distributions in terms of its draft. Follows one growing context, like the draft's own
    cache.

    A shared token is translated by itself, any other by the tokens in which the draft would write its text; so the
    translation of a longer context begins with that of the shorter one, and catching up stays cheap.
    """

    def __init__(self, pairing: Pairing, target: Tokenizer, draft: Tokenizer, *, rows: int, draft_rows: int) -> None:
        """rows, draft_rows: logits that target and draft have, tokens and padding."""
        usable = (pairing.target_ids < rows) & (pairing.draft_ids < draft_rows)
        self.target_ids, self.draft_ids = pairing.target_ids[usable], pairing.draft_ids[usable]
        self._target, self._draft, self._draft_rows = target, draft, draft_rows
        self._to_draft = np.full(rows, -1, dtype=np.int64)
        self._to_draft[self.target_ids] = self.draft_ids
        self._logits = np.full(rows, _IMPOSSIBLE, dtype=np.float32)
        self._written: dict[int, Tokens] = {}  # tokens without a counterpart, as the draft writes them
        self._of_byte: dict[int, int] = {}
        self._source: Tokens = np.empty(0, dtype=np.int64)  # what was translated last,
        self._ends: Indices = np.empty(0, dtype=np.int64)  # where the translation of each of its tokens ends,
        self._tokens: Tokens = np.empty(0, dtype=np.int64)  # and the translation

    def context(self, context: Tokens) -> tuple[Tokens, Indices]:
        """The context in the draft's tokens, (m,), and for each token of the context the length up to its end, (n,)."""
        n = min(len(self._source), len(context))
        differ = np.flatnonzero(self._source[:n] != context[:n])
        kept = int(differ[0]) if len(differ) else n
        if kept == 0:
            pieces = [self._start(context)]
        else:
            pieces = [self._tokens[: self._ends[kept - 1]]]
        ends, length = self._ends[:kept].tolist(), len(pieces[0])
        for token in context[kept:].tolist():
            pieces.append(self._translate(token))
            length += len(pieces[-1])
            ends.append(length)
        self._tokens = np.concatenate(pieces)
        self._source, self._ends = context.copy(), np.array(ends, dtype=np.int64)
        return self._tokens, self._ends

    def logits(self, logits: Floats) -> Floats:
        """The draft's logits, (draft_rows,), over the target's tokens, (rows,); what is not shared has no chance.

        Valid until the next call. Softmax of it is the draft's distribution given that the token is a shared one.
        """
        self._logits[self.target_ids] = logits[self.draft_ids]
        return self._logits

    def token(self, token: int) -> int:
        """The draft's id of a shared token."""
        return int(self._to_draft[token])

    def is_shared(self, token: int) -> bool:
        """Whether the draft can draft this token of the target."""
        return token < len(self._to_draft) and self._to_draft[token] >= 0

    def _start(self, context: Tokens) -> Tokens:
        """What the draft's texts start with and this one does not."""
        bos = self._draft.bos_id if self._draft.add_bos else None
        there = bos is None or (len(context) and self._translate(int(context[0])).tolist()[:1] == [bos])
        return np.array([] if there else [bos], dtype=np.int64)

    def _translate(self, token: int) -> Tokens:
        if self.is_shared(token):
            return self._to_draft[token : token + 1]
        if token not in self._written:
            self._written[token] = self._write(self._target.piece(token, special=True))
        return self._written[token]

    def _write(self, piece: bytes) -> Tokens:
        """Bytes in the draft's tokens; a part of a character in tokens of one byte, if it has them."""
        try:
            ids = self._draft.encode(piece.decode("utf-8"), bos=False)
        except UnicodeDecodeError:
            of_byte = self._ids_of_bytes()
            ids = np.array([of_byte[byte] for byte in piece if byte in of_byte], dtype=np.int64)
        return ids[ids < self._draft_rows]

    def _ids_of_bytes(self) -> dict[int, int]:
        if not self._of_byte:
            draft = self._draft
            letters = [i for i in range(draft.vocab_size) if len(draft.token(i) or "") == 1]
            self._of_byte = {draft.piece(i)[0]: i for i in letters if len(draft.piece(i)) == 1}
        return self._of_byte
