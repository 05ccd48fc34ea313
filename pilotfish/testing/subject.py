"""An engine under contract, and what the checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .. import backends
from ..runtime.encoder_input import prepare
from ..runtime.interfaces import Floats, Indices, Session, Tokens, Weights

ENGINES = rf"\b({'|'.join(backends.names())}) engine\b"  # what an AbilityError names as the way out


@dataclass(frozen=True)
class Subject:
    """An engine with some weights, and what it claims.

    open: the weights, opened anew; a vocabulary of 3 tokens or more, a context of 128 entries or more.
    noise: largest difference, relative to the largest logit, between the same token computed in steps of different
        widths, in a tree, or with other prefill chunks. 0 claims equal bits.
    row_classes: widths whose steps give equal bits, whatever else changes; () claims none. Tried after `pasts` tokens.
    reference: other weights that give the same answers up to reference_noise.
    """

    open: Callable[[], Weights]
    noise: float
    row_classes: tuple[tuple[int, ...], ...] = ()
    pasts: tuple[int, ...] = (0, 8, 64, 200, 300)
    reference: Callable[[], Weights] | None = None
    reference_noise: float = 0.0

    @contextmanager
    def sessions(self, n: int = 1, max_context: int | None = None) -> Iterator[list[Session]]:
        """Sessions over the same weights, all closed afterwards; of an encoder-decoder model with a source read."""
        weights = self.open()
        opened = [weights.session(max_context) for _ in range(n)]
        try:
            for session in opened:
                prepare(session)
            yield opened
        finally:
            for session in opened:
                session.close()
            weights.close()

    @contextmanager
    def session(self, max_context: int | None = None) -> Iterator[Session]:
        with self.sessions(1, max_context) as (session,):
            yield session

    def agree(self, ours: Floats, theirs: Floats) -> None:
        near(ours, theirs, self.noise)


def near(ours: Floats, theirs: Floats, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    if tolerance == 0.0:
        assert np.array_equal(ours, theirs)
    else:
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def text(session: Session, n: int, seed: int = 0) -> Tokens:
    """Random tokens; every engine gets the same ones for one vocabulary."""
    return np.random.default_rng(seed).integers(0, session.info.vocab_size, n, dtype=np.int64)


def run(session: Session, tokens: Tokens, width: int) -> Floats:
    """Logits of all tokens, in steps of one width (the last may be narrower)."""
    rows = [session.forward(part, n_logits=len(part)).logits.copy() for part in parts(tokens, width)]
    return np.concatenate(rows)


def parts(tokens: Tokens, width: int) -> list[Tokens]:
    return [tokens[i : i + width] for i in range(0, len(tokens), width)]


def rows_of(*rows: int) -> Indices:
    return np.array(rows, dtype=np.int64)


# Row 0 has two children, each of which has a line of its own.
#     0 - 1 - 2 - 4
#       \ 3 - 5
TREE = rows_of(0, 0, 1, 0, 2, 3)
PATHS = (rows_of(0, 1, 2, 4), rows_of(0, 3, 5))
