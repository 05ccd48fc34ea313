"""A fake engine whose logits depend on every visible token in order, with every ability that can be faked.

A fake that sums its tokens lets real bugs through; here one wrong, missing, doubled or misplaced entry changes
everything that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..backends.common.decoder_only import DecoderOnly
from ..backends.common.saved_cache import pack, unpack
from ..runtime.encoder_input import checked_source
from ..runtime.errors import AbilityError, ContextFullError, EngineError, OptionError
from ..runtime.interfaces import (
    UNOBSERVED,
    Ability,
    EncoderInfo,
    Floats,
    Indices,
    ModelInfo,
    Observations,
    Step,
    Tokens,
)

ALL: frozenset[Ability] = frozenset({"tree", "evict_tokens", "attend", "fork", "save"})
SEEN: frozenset[Ability] = frozenset(
    {"keys", "queries"}
)  # invented, one head of them, but the same for the same entries; only if asked for
_HEAD_DIM = 4


@dataclass(frozen=True, slots=True)
class _Entry:
    position: int
    token: int
    lone: bool = False  # written by a step of one row


class ToyWeights:
    """Random but fixed logits.

    row_noise: how far the logits of one-row steps are off those of wider ones; entries written by such steps change
        what comes after them, too.
    encoder: makes it an encoder-decoder model, whose logits depend on every token of the source, too.
    copying: added there to the logit of the source's token at the place of the one to come: 0 copies nothing, 20 nearly
        everything.
    """

    def __init__(
        self,
        vocab_size: int = 3,
        seed: int = 0,
        scale: float = 1.5,
        context_length: int = 64,
        row_noise: float = 0.0,
        abilities: frozenset[Ability] = ALL,
        encoder: EncoderInfo | None = None,
        copying: float = 0.0,
    ) -> None:
        self.seed, self.scale, self.row_noise = seed, scale, row_noise
        self.abilities: frozenset[Ability] = abilities if encoder is None else abilities | {"encode"}
        self.encoder, self.copying = encoder, copying
        self.closed = False
        facts = ("toy", vocab_size, context_length, 1, 1, 1, _HEAD_DIM, 1, "toy", "1", "cpu", 1, f"toy-{seed}")
        self.info = ModelInfo(*facts, encoder=encoder)

    def logits(self, visible: tuple[_Entry, ...], width: int, source: tuple[int, ...] = ()) -> Floats:
        words = [self.seed, *source, *(x for e in visible for x in (e.position, e.token))]
        rng = np.random.default_rng(words)
        logits = rng.normal(0.0, self.scale, self.info.vocab_size).astype(np.float32)
        if self.encoder is not None and self.copying:
            at = visible[-1].position + 1 - len(self.encoder.decoder_start)
            logits[list(source[max(at, 0) :][:1])] += np.float32(self.copying)
        lone = [i for i, e in enumerate(visible) if e.lone]
        if not self.row_noise or (width > 1 and not lone):
            return logits
        noise = np.random.default_rng([*words, width == 1, *lone]).normal(0.0, self.row_noise, len(logits))
        return logits + noise.astype(np.float32)

    def vectors(self, paths: Sequence[tuple[_Entry, ...]]) -> Floats:
        """(len(paths), head_dim), each from all that a path holds."""
        words = [[self.seed, *(x for e in path for x in (e.position, e.token))] for path in paths]
        drawn = [np.random.default_rng(w).normal(0.0, 1.0, _HEAD_DIM) for w in words]
        return np.array(drawn, dtype=np.float32).reshape(-1, _HEAD_DIM)

    def session(self, max_context: int | None = None) -> ToySession:
        limit = self.info.context_length
        wanted = limit if max_context is None else max_context
        if self.closed:
            raise EngineError("these weights are closed.")
        if not 1 <= wanted <= limit:
            raise OptionError(f"max_context is {wanted}, but must lie in 1..{limit}.")
        return ToySession(self, wanted) if self.encoder is None else ToyEncoderDecoderSession(self, wanted)

    def close(self) -> None:
        self.closed = True


class ToySession(DecoderOnly):
    """Implements pilotfish.runtime.interfaces.Session; counts what it is asked to do."""

    def __init__(self, weights: ToyWeights, max_context: int) -> None:
        self.weights, self.max_context = weights, max_context
        self.info = replace(weights.info)
        self.abilities = weights.abilities
        self.entries: list[_Entry] = []
        self.source: tuple[int, ...] = ()  # what was encoded last
        self.last_parents: list[int] = []  # of the last step; empty once something else has changed the cache
        self.closed = False
        self.attended_from = 0  # entries that there were when those below were chosen
        self.unseen: frozenset[_Entry] = frozenset()  # entries that steps do not see
        self.n_forward = 0
        self.widths: list[int] = []
        self.tokens_run: list[int] = []

    @property
    def positions(self) -> Indices:
        return np.array([e.position for e in self.entries], dtype=np.int64)

    @property
    def nbytes(self) -> int:
        return 16 * len(self.entries)

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        n = len(tokens)
        if not observe <= self.abilities:
            raise AbilityError("the toy engine does not observe this; the reference engine does.")
        if parents is not None and "tree" not in self.abilities:
            raise AbilityError("the toy engine was made without trees; the reference engine has them.")
        self._check_step(tokens, n_logits, parents)
        start = self.entries[-1].position + 1 if self.entries else 0
        base = tuple(entry for entry in self.entries if entry not in self.unseen)
        paths: list[tuple[_Entry, ...]] = []
        for row, token in enumerate(tokens):
            parent = row - 1 if parents is None else (-1 if row == 0 else int(parents[row]))
            above = paths[parent] if parent >= 0 else base
            position = above[-1].position + 1 if parent >= 0 else start
            entry = _Entry(position, int(token), n == 1)
            paths.append((*above, entry))
            self.entries.append(entry)
        self.last_parents = list(range(-1, n - 1)) if parents is None else [-1, *(int(p) for p in parents[1:])]
        self.n_forward += 1
        self.widths.append(n)
        self.tokens_run += [int(t) for t in tokens]
        rows = [self.weights.logits(path, n, self.source) for path in paths[n - n_logits :]]
        queries = self.weights.vectors(paths)[None, None] if "queries" in observe else None
        return Step(np.array(rows, dtype=np.float32).reshape(n_logits, self.info.vocab_size), queries=queries)

    def _check_step(self, tokens: Tokens, n_logits: int, parents: Indices | None) -> None:
        n = len(tokens)
        self._check_settled()
        if n == 0 or not 0 <= n_logits <= n:
            raise OptionError(f"{n_logits} logit rows of {n} tokens are impossible.")
        if len(self.entries) + n > self.max_context:
            raise ContextFullError(
                f"{n} tokens do not fit: {len(self.entries)} of {self.max_context} entries are used. Use max_context."
            )
        if not all(0 <= token < self.info.vocab_size for token in tokens):
            raise OptionError(f"tokens must lie in 0..{self.info.vocab_size - 1}.")
        if parents is not None and (
            len(parents) != n or parents[0] != 0 or not all(0 <= parents[r] < r for r in range(1, n))
        ):
            raise OptionError("parents must be rows before their children.")

    def _check_settled(self) -> None:
        if self.closed or self.weights.closed:
            raise EngineError("the toy session is closed.")
        if self.last_parents != list(range(-1, len(self.last_parents) - 1)):
            raise OptionError("the last step was a tree: accept a path of it first.")

    def truncate(self, n_tokens: int) -> None:
        if n_tokens < 0:
            raise OptionError(f"{n_tokens} tokens are impossible.")
        base = len(self.entries) - len(self.last_parents)
        if self.closed or (n_tokens > base and sum(e.position < n_tokens for e in self.entries[base:]) > 1):
            self._check_settled()
        self.entries = [e for e in self.entries if e.position < n_tokens]
        self.last_parents = []
        if len(self.entries) < self.attended_from:
            self.unseen, self.attended_from = frozenset(), 0

    def accept(self, rows: Indices) -> None:
        if self.closed:
            raise EngineError("the toy session is closed.")
        path = [int(r) for r in rows]
        if not path or path[-1] >= len(self.last_parents) or [self.last_parents[r] for r in path] != [-1, *path[:-1]]:
            raise OptionError("accept() takes a path of the last step, from row 0 downwards.")
        base = len(self.entries) - len(self.last_parents)
        self.entries = self.entries[:base] + [self.entries[base + r] for r in path]
        self.last_parents = []

    def keep(self, entries: Indices) -> None:
        self.entries = [self.entries[i] for i in self._kept(entries)]
        self.last_parents = []
        self.unseen, self.attended_from = frozenset(), 0

    def attend(self, entries: Indices | None) -> None:
        self._check_able("attend")
        self._check_settled()
        if entries is None:
            self.unseen, self.attended_from = frozenset(), 0
            return
        kept = set(self._kept(entries))
        if len(self.entries) - 1 not in kept:
            raise OptionError("entries to attend to must end with the last one.")
        self.unseen = frozenset(entry for i, entry in enumerate(self.entries) if i not in kept)
        self.attended_from = len(self.entries)

    def _kept(self, entries: Indices) -> list[int]:
        if "evict_tokens" not in self.abilities or entries.ndim != 1:
            raise AbilityError("the toy engine was made without this eviction; the reference engine has it.")
        self._check_settled()
        kept = [int(i) for i in entries]
        if kept != sorted(set(kept)) or not all(0 <= i < len(self.entries) for i in kept):
            raise OptionError("entries to keep must ascend and exist.")
        return kept

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        if "keys" not in self.abilities:
            raise AbilityError("the toy engine has no keys; the reference engine has them.")
        if self.closed:
            raise EngineError("the toy session is closed.")
        drawn = self.weights.vectors([(entry,) for entry in self.entries])[None]
        return drawn, -drawn

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> ToySession:
        self._check_able("fork")
        self._check_settled()
        kept = list(range(len(self.entries))) if entries is None else self._kept(entries)
        limit = max_context or self.max_context
        if len(kept) > limit:
            raise ContextFullError(f"{len(kept)} entries do not fit into {limit}; use a larger max_context.")
        other = self.weights.session(limit)
        other.entries, other.source = [self.entries[i] for i in kept], self.source
        return other

    def save(self) -> bytes:
        self._check_able("save")
        self._check_settled()
        facts = np.array([(e.token, e.lone) for e in self.entries], dtype=np.int64).reshape(-1, 2)
        return pack(self.info, self.positions, [facts, np.array(self.source, dtype=np.int64)])

    def restore(self, state: bytes) -> None:
        self._check_able("save")
        if self.closed:
            raise EngineError("the toy session is closed.")
        positions, (facts, source) = unpack(self.info, state, self.max_context)
        self.source = tuple(source.tolist())
        self.entries = [_Entry(int(p), int(t), bool(w)) for p, (t, w) in zip(positions, facts, strict=True)]
        self.last_parents = []
        self.unseen, self.attended_from = frozenset(), 0

    def _check_able(self, ability: str) -> None:
        if ability not in self.abilities:
            raise AbilityError(f"the toy engine was made without {ability}; the reference engine has it.")

    def close(self) -> None:
        self.entries, self.closed = [], True


class ToyEncoderDecoderSession(ToySession):
    """The same of an encoder-decoder model."""

    n_encoded = 0  # how often the encoder was run

    def encode(self, source: Tokens | Floats) -> None:
        if self.closed or self.weights.closed:
            raise EngineError("the toy session is closed.")
        assert self.info.encoder is not None
        read = checked_source(source, self.info.encoder, self.info.vocab_size)
        self.n_encoded += 1
        words = read if read.ndim == 1 else np.frombuffer(read.tobytes(), dtype=np.uint32)  # of sound the bits
        self.source = tuple(words.tolist())
        self.entries, self.last_parents = [], []

    def _check_settled(self) -> None:
        super()._check_settled()
        if not self.source:
            raise OptionError("nothing was encoded yet: give the session a source first.")
