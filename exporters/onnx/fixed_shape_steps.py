"""Steps of a graph of fixed shapes (fixed_shape_graph.py) in plain numpy: to try an export out and to calibrate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...runtime.interfaces import Floats, Tokens

Values: TypeAlias = dict[str, npt.NDArray[Any]]


class StaticSteps:
    """One sequence on a static graph: `width` rows a step, a cache of `window` columns that numpy keeps.

    layers, kv_heads, head_dim: of the cache. hidden: what the mask adds where nothing is to be seen.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, *, width: int, window: int, hidden: float = -3e4
    ) -> None:
        self._width, self._window, self._hidden = width, window, np.float32(hidden)
        self._cache: Values = {
            f"past_{kind}_{i}": np.zeros((1, kv_heads, window, head_dim), dtype=np.float32)
            for i in range(layers)
            for kind in ("key", "value")
        }
        self._n = 0  # entries

    def inputs(self, tokens: Tokens) -> Values:
        """Of the step that reads these tokens, at most `width` of them; the rows left over see nothing but themselves
        and are not stored."""
        rows, n = np.arange(self._width), self._n
        ids = np.zeros((1, self._width), dtype=np.int64)
        ids[0, : len(tokens)] = tokens
        # Left-over rows stand at the end of the window at the latest: a place has to be theirs.
        columns = np.minimum(n + rows, self._window - 1)
        mask = np.full((1, 1, self._width, self._window), self._hidden, dtype=np.float32)
        mask[..., :n] = 0
        for row, column in enumerate(columns):
            mask[0, 0, row, n : column + 1] = 0
        place = np.zeros((1, 1, self._window, self._width), dtype=np.float32)
        place[0, 0, columns[: len(tokens)], rows[: len(tokens)]] = 1
        return {
            "input_ids": ids,
            "position_ids": columns[None].astype(np.int64),
            "logit_rows": rows.astype(np.int64),
            "mask": mask,
            "place": place,
            **{name: values.copy() for name, values in self._cache.items()},
        }

    def store(self, outputs: Mapping[str, npt.NDArray[Any]], n_tokens: int) -> None:
        """Put the new rows of so many tokens into the window."""
        for name, values in self._cache.items():
            new = outputs[name.replace("past", "new")]
            values[:, :, self._n : self._n + n_tokens] = new[:, :, :n_tokens]
        self._n += n_tokens

    def read(self, tokens: Tokens, run: Callable[[Values], Mapping[str, npt.NDArray[Any]]]) -> Floats:
        """Logits after each of these tokens, (n, vocab_size), read `width` at a time."""
        logits = []
        for start in range(0, len(tokens), self._width):
            part = tokens[start : start + self._width]
            outputs = run(self.inputs(part))
            self.store(outputs, len(part))
            logits.append(np.array(outputs["logits"][: len(part)], dtype=np.float32))
        return np.concatenate(logits)
