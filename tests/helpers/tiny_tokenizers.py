"""Small tokenizers."""

from __future__ import annotations

import numpy as np

from pilotfish.runtime.text.token_bytes import BYTES as _BYTES
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

CHAR = {byte: char for char, byte in _BYTES.items()}


MERGES = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "1 2", "Ġ hello", "\u00c3 \u00a9"]


def metadata(**changes: object) -> dict[str, object]:
    """256 bytes, then what the merges make, then two control tokens, one of the user's, one unused."""
    tokens = [CHAR[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in MERGES]
    types = [1] * len(tokens) + [3, 3, 4, 5]
    tokens += ["<|im_start|>", "<|im_end|>", "<tool>", "<spare>"]
    start = tokens.index("<|im_start|>")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": start,
        "tokenizer.ggml.eos_token_id": start + 1,
        **{f"tokenizer.ggml.{name}": value for name, value in changes.items()},
    }


TOKENIZER = tokenizer_from_gguf(metadata())


START, END, TOOL = 264, 265, 266
