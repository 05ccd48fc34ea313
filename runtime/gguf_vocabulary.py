"""The vocabulary in a GGUF file's metadata: texts, kinds and scores of its tokens, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken

from .errors import ModelFileError

# Token types of the GGUF specification.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NO_MERGE = "\t \t"  # stands where a tokenizer merges nothing, since llama.cpp wants one: the byte alphabet has no tab


def strings(metadata: Mapping[str, object], key: str) -> Sequence[str]:
    """A list of texts. Raises ModelFileError."""
    value = metadata.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ModelFileError(f"the GGUF file's {key} is missing or not a list.")
    if not all(isinstance(text, str) for text in value):
        raise ModelFileError(f"the GGUF file's {key} does not hold texts.")
    return value


def token_types(metadata: Mapping[str, object], n_tokens: int) -> list[int]:
    """The kind of each token; all are normal where the file does not say. Raises ModelFileError."""
    value = metadata.get("tokenizer.ggml.token_type")
    if value is None:
        return [NORMAL] * n_tokens
    types = np.asarray(value)
    if types.shape != (n_tokens,) or types.dtype.kind not in "iu":
        raise ModelFileError(f"the GGUF file has {n_tokens} tokens, but its tokenizer.ggml.token_type does not fit.")
    return [int(kind) for kind in types]


def token_scores(metadata: Mapping[str, object], n_tokens: int) -> npt.NDArray[np.float64]:
    """The score of each token, (n_tokens,). Raises ModelFileError."""
    scores = np.asarray(metadata.get("tokenizer.ggml.scores"))
    if scores.shape != (n_tokens,) or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise ModelFileError(f"the GGUF file has {n_tokens} tokens, but its tokenizer.ggml.scores do not fit.")
    return scores.astype(np.float64)


def add_tokens(inner: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tell the library which tokens are control tokens, and which are the user's own and never cut."""
    named = [(text, kind) for text, kind in zip(tokens, types, strict=True) if text]
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text, k in named if k == CONTROL])
    inner.add_tokens([AddedToken(text, normalized=False) for text, k in named if k == USER_DEFINED])
