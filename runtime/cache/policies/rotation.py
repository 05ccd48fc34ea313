"""A model's rotary embedding, found out by looking at queries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...errors import AbilityError
from ...interfaces import Floats, Session

_ROWS = 17  # one token at so many places: steps of 1 and of 16 positions
_TOLERANCE = 1e-2  # of the queries' size


def measured_frequencies(session: Session) -> npt.NDArray[np.float64]:
    """The angle by which one position turns each pair (i, i + head_dim / 2) of a query, (head_dim / 2,), in radians.

    In the first layer a query before its rotation depends on its token alone. So one token is run several times, on
    an empty fork, and the angle between its queries is read off. The session itself is not touched.
    Raises AbilityError where queries are not turned that way, as with heads that are rotated in part.
    """
    probe = session.fork(np.empty(0, dtype=np.int64), _ROWS)
    try:
        step = probe.forward(np.zeros(_ROWS, dtype=np.int64), n_logits=0, observe=frozenset({"queries"}))
        assert step.queries is not None
        first = step.queries[0].astype(np.float64)  # (n_heads, _ROWS, head_dim)
    finally:
        probe.close()
    a, b = np.split(first, 2, axis=-1)
    pairs = a + 1j * b
    coarse = _angle(pairs, 1)  # below half a turn a position in every model
    far = _angle(pairs, _ROWS - 1)
    turns = np.round((coarse * (_ROWS - 1) - far) / (2 * np.pi))
    frequencies: npt.NDArray[np.float64] = (far + 2 * np.pi * turns) / (_ROWS - 1)
    angles = np.outer(np.arange(_ROWS), frequencies)
    wanted = pairs[:, :1] * np.exp(1j * angles)
    if not np.abs(pairs - wanted).max() <= _TOLERANCE * np.abs(pairs).max():
        raise AbilityError(
            f"queries of this model on the {session.info.engine} engine are not turned in halves by their position, "
            "which the expected cache policy undoes; use another policy, such as snapkv or keydiff."
        )
    return frequencies


def turned(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """(a, b) becomes (a cos - b sin, b cos + a sin), a and b the halves of the last axis; cos, sin: (..., half)."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _angle(pairs: npt.NDArray[np.complex128], distance: int) -> npt.NDArray[np.float64]:
    """By which pairs (n_heads, rows, half) turn over so many rows, every head weighed by its size."""
    products = pairs[:, distance:] * pairs[:, :-distance].conj()
    return np.asarray(np.angle(products.sum(axis=(0, 1))))
