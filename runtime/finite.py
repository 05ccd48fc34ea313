"""Logits that are numbers, which those of damaged weights are not."""

from __future__ import annotations

import numpy as np

from .errors import NotFiniteError
from .interfaces import Floats, ModelInfo


def require_finite(logits: Floats, info: ModelInfo) -> None:
    """Raise NotFiniteError unless every row has a largest logit that is a number.

    So NaN and +inf are refused anywhere, and -inf where all of a row is: engines and rules may forbid single tokens.
    """
    if not np.isfinite(logits.max(axis=-1)).all():
        raise NotFiniteError(
            f"the {info.engine} engine on {info.device} computed logits that are not numbers: the model's weights are "
            "damaged, or the engine fails at them. Fetch or export the model anew, or choose another engine or device."
        )
