"""What queries to come are expected to attend to stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...errors import OptionError
from ...interfaces import Ability, Floats
from .rotation import measured_frequencies, turned
from .scorer import Scorer, stack
from .view import CacheView, products, softmax

_FARTHEST = 1 << 16  # positions, each of which gets a rotation for every channel


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAttention(Scorer):
    """Keeps the entries to which the next queries will attend most, if they are spread like the last ones.

    The last `observed` queries (no more than `every`), before their rotation, give a mean and a covariance; both are
    turned by the rotation averaged over the next `ahead` positions.
    score = softmax(mean . key / sqrt(d) + key . covariance . key / 2d) over all but the sinks, averaged over the heads
    that share a key, + epsilon, * |value|.
    value_norm: False leaves the values out.
    Source: Devoto et al. 2025, Expected Attention (512 positions ahead, 4 sinks, epsilon 0). Deviations: statistics of
    the last 128 queries, which decoding takes too, not of the whole prompt; the window stays. Queries come rotated, so
    the rotation is measured (rotation.py) and undone.
    """

    observed: int = 128
    ahead: int = 512
    epsilon: float = 0.0
    value_norm: bool = True
    name = "expected"
    reads: ClassVar[frozenset[Ability]] = frozenset({"keys", "queries", "fork"})

    def __post_init__(self) -> None:
        Scorer.__post_init__(self)
        if self.ahead > _FARTHEST or self.epsilon < 0.0:
            raise OptionError(
                f"ahead is {self.ahead} and epsilon {self.epsilon}, but must be from 1 to {_FARTHEST}, and 0 or more."
            )

    @property
    def rows(self) -> int | None:
        return min(self.observed, self.every)

    @property
    def shares(self) -> bool:
        return not self.value_norm

    def scores(self, view: CacheView) -> Floats:
        assert view.queries is not None
        frequencies = measured_frequencies(view.session)
        end = int(view.positions[-1]) + 1
        before = np.outer(np.arange(end - len(view.tokens), end), -frequencies)
        to_come = np.outer(np.arange(end, end + self.ahead), frequencies)
        undone = [f(before).astype(np.float32) for f in (np.cos, np.sin)]
        cos, sin = (f(to_come).mean(axis=0).astype(np.float32) for f in (np.cos, np.sin))
        layers: list[Floats] = []
        for layer, (keys, values) in enumerate(view.layers_keys_values()):
            plain = turned(view.queries[layer], *undone)
            shares = self._shares(turned(plain, cos, sin), keys)
            if self.value_norm:
                shares = (shares + np.float32(self.epsilon)) * np.linalg.norm(values, axis=-1)
            layers.append(shares)
        return stack(layers)

    def _shares(self, queries: Floats, keys: Floats) -> Floats:
        """queries: (n_heads, rows, head_dim), turned to come; keys: (kv_heads, n, head_dim). (kv_heads, n), 0 at sinks.

        Turning is linear, so the covariance of turned queries is the turned covariance.
        """
        kv_heads, n, head_dim = keys.shape
        mean = queries.mean(axis=1, keepdims=True)
        centred = (queries - mean).swapaxes(1, 2)
        covariance = products(centred, centred) / np.float32(queries.shape[1])
        linear = products(mean.reshape(kv_heads, -1, head_dim), keys) / np.float32(np.sqrt(head_dim))
        across = products(covariance.reshape(kv_heads, -1, head_dim), keys).reshape(kv_heads, -1, head_dim, n)
        logits = linear + (across * keys.swapaxes(1, 2)[:, None]).sum(axis=2) / np.float32(2 * head_dim)
        shares = np.zeros((kv_heads, n), dtype=np.float32)
        shares[:, self.sinks :] = softmax(logits[..., self.sinks :]).mean(axis=1)
        return shares
