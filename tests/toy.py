"""A fake engine whose logits depend on every visible token in order, with every ability the contracts know.

A fake that sums its tokens lets real bugs through; here one wrong, missing, doubled or misplaced entry changes
everything that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pilotfish.runtime.errors import AbilityError, ContextFullError, EngineError, OptionError
from pilotfish.runtime.interfaces import Floats, Indices, ModelInfo, Step, Tokens

ALL = frozenset({"tree", "evict_tokens"})


@dataclass(frozen=True, slots=True)
class _Entry:
    position: int
    token: int


class ToyWeights:
    """Random but fixed logits. row_noise: how far the logits of one-row steps are off those of wider ones."""

    def __init__(
        self,
        vocab_size: int = 3,
        seed: int = 0,
        scale: float = 1.5,
        context_length: int = 64,
        row_noise: float = 0.0,
        abilities: frozenset[str] = ALL,
    ) -> None:
        self.seed, self.scale, self.row_noise, self.abilities = seed, scale, row_noise, abilities
        self.info = ModelInfo("toy", vocab_size, context_length, 1, 1, 1, 1, 1, "toy", "1", "cpu", 1, f"toy-{seed}")

    def logits(self, visible: tuple[_Entry, ...], width: int) -> Floats:
        words = [self.seed, *(x for e in visible for x in (e.position, e.token))]
        rng = np.random.default_rng(words)
        logits = rng.normal(0.0, self.scale, self.info.vocab_size).astype(np.float32)
        noise = rng.normal(0.0, self.row_noise, len(logits)).astype(np.float32)
        return logits + noise if width == 1 else logits

    def session(self, max_context: int | None = None) -> ToySession:
        if max_context is not None and max_context < 1:
            raise OptionError(f"max_context is {max_context}, but must be 1 or more.")
        return ToySession(self, max_context or self.info.context_length)

    def close(self) -> None:
        pass


class ToySession:
    """Implements pilotfish.runtime.interfaces.Session; counts what it is asked to do."""

    def __init__(self, weights: ToyWeights, max_context: int) -> None:
        self.weights, self.max_context = weights, max_context
        self.info = replace(weights.info)
        self.abilities = weights.abilities
        self.entries: list[_Entry] = []
        self.closed = False
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
        self,
        tokens: Tokens,
        *,
        n_logits: int,
        parents: Indices | None = None,
        observe: frozenset[str] = frozenset(),
    ) -> Step:
        if self.closed:
            raise EngineError("this session is closed; open another one.")
        n = len(tokens)
        if n == 0 or not 0 <= n_logits <= n:
            raise OptionError(f"{n_logits} logit rows of {n} tokens are impossible.")
        if len(self.entries) + n > self.max_context:
            raise ContextFullError(
                f"{n} tokens do not fit: {len(self.entries)} of {self.max_context} entries are used. Use max_context."
            )
        if observe:
            raise AbilityError("the toy engine observes nothing; the reference engine does.")
        if parents is not None and "tree" not in self.abilities:
            raise AbilityError("the toy engine was made without trees; the reference engine has them.")
        if parents is not None and not (len(parents) == n and parents[0] == 0 and _all_above(parents)):
            raise OptionError("parents must hold one row index per token, parents[0] == 0 and parents[r] < r.")
        base = tuple(self.entries)
        start = base[-1].position + 1 if base else 0
        paths: list[tuple[_Entry, ...]] = []
        for row, token in enumerate(tokens):
            parent = row - 1 if parents is None else (-1 if row == 0 else int(parents[row]))
            above = paths[parent] if parent >= 0 else base
            position = above[-1].position + 1 if parent >= 0 else start
            entry = _Entry(position, int(token))
            paths.append((*above, entry))
            self.entries.append(entry)
        self.n_forward += 1
        self.widths.append(n)
        self.tokens_run += [int(t) for t in tokens]
        rows = [self.weights.logits(path, n) for path in paths[n - n_logits :]]
        return Step(np.array(rows, dtype=np.float32).reshape(n_logits, self.info.vocab_size))

    def truncate(self, n_tokens: int) -> None:
        self.entries = [e for e in self.entries if e.position < n_tokens]

    def accept(self, rows: Indices) -> None:
        if len(rows) == 0 or rows[0] != 0 or rows[-1] >= self.widths[-1] or (np.diff(rows) <= 0).any():
            raise OptionError("an accepted path begins with row 0 and ascends.")
        base = len(self.entries) - self.widths[-1]
        self.entries = self.entries[:base] + [self.entries[base + int(r)] for r in rows]

    def keep(self, entries: Indices) -> None:
        if "evict_tokens" not in self.abilities:
            raise AbilityError("the toy engine was made without eviction; the reference engine has it.")
        if len(entries) and (entries[0] < 0 or entries[-1] >= len(self.entries) or (np.diff(entries) <= 0).any()):
            raise OptionError(f"entries to keep must ascend and lie in 0..{len(self.entries) - 1}.")
        self.entries = [self.entries[int(i)] for i in entries]

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        raise AbilityError("the toy engine has no keys; the reference engine has them.")

    def close(self) -> None:
        self.entries, self.closed = [], True


def _all_above(parents: Indices) -> bool:
    return all(0 <= parent < row for row, parent in enumerate(parents.tolist()) if row)
