"""Logits that are numbers, which those of damaged weights are not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import NotFiniteError
from ..interfaces import Floats, ModelInfo


def require_finite(logits: Floats, info: ModelInfo) -> None:
    """Raise NotFiniteError unless every row has a largest logit that is a number.

    So NaN and +inf are refused anywhere, and -inf where all of a row is: engines and rules may forbid single tokens.
    """
    if not are_finite(logits):
        raise NotFiniteError(
            f"the {info.engine} engine on {info.device} computed logits that are not numbers: the model's weights are "
            "damaged, or the engine fails at them. Fetch or export the model anew, or choose another engine or device."
        )


def are_finite(logits: Floats) -> bool:
    """Whether every row has a largest logit that is a number: a NaN anywhere in it is the largest, as numpy has it."""
    return bool(np.isfinite(logits.max(axis=-1)).all())


def for_json(value: object) -> object:
    """The same data with None in place of every number that JSON has no word for: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: for_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(one) for one in value]
    return value
