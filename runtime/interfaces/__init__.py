"""The types the rest implements. Read this package first.

Vocabulary. p is the target's distribution, q the draft's. The *context* is the whole committed sequence, prompt and
output.
An *entry* is one token's keys and values in a KV cache; its *position* is its place in the context.

An encoder-decoder session is one whose prefill is the encoder: encode() reads the *source*, the context begins with the
model's decoder_start, and everything else is as for decoders.

The invariant that carries the decode loop: **between rounds the cache covers the whole context but its last token.**
A round runs one forward pass over that last token (row 0) and the drafted tokens (rows 1..k), accepts a path, and
truncates the cache back to the invariant.
"""

from .distribution import (
    Distribution,
    Floats,
    Indices,
    Probs,
    Tokens,
    as_tokens,
)
from .rounds import (
    EMPTY_DRAFT,
    Budget,
    Draft,
    DraftLengthPolicy,
    FinishReason,
    Forecast,
    Proposer,
    Round,
    SourceReader,
)
from .session import (
    UNOBSERVED,
    Ability,
    EncoderInfo,
    ModelInfo,
    Observation,
    Observations,
    Session,
    Step,
    Weights,
)

__all__ = [
    "EMPTY_DRAFT",
    "UNOBSERVED",
    "Ability",
    "Budget",
    "Distribution",
    "Draft",
    "DraftLengthPolicy",
    "EncoderInfo",
    "FinishReason",
    "Floats",
    "Forecast",
    "Indices",
    "ModelInfo",
    "Observation",
    "Observations",
    "Probs",
    "Proposer",
    "Round",
    "Session",
    "SourceReader",
    "Step",
    "Tokens",
    "Weights",
    "as_tokens",
]
