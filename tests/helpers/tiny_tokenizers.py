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


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def gguf_metadata(prefix: bool = True, **changes: object) -> dict[str, object]:
    """A hand-made SentencePiece vocabulary: higher scores are joined first."""
    pieces = {"▁": -9.0, "t": -9.0, "h": -9.0, "e": -9.0, "a": -9.0, "th": -1.0, "he": -2.0, "the": -3.0, "▁the": -4.0}
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces, "\n\n"]
    found: dict[str, object] = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [*pieces.values(), 0.0],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [4],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": prefix,
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items() if value is not None}


def doubled(model: str) -> dict[str, object]:
    """A vocabulary in which the text of "hello" and that of a control token come twice, and one token has none."""
    pieces = ["h", "e", "l", "o", "he", "ll", "hello", "x", "hello", "<z>", "<z>", "", "hell"]
    types = [1] * 9 + [3, 3, 1, 1]
    if model == "gpt2":
        merges = ["h e", "l l", "he ll", "hell o"]
        return metadata(tokens=pieces, token_type=types, merges=merges, bos_token_id=0, eos_token_id=9)
    tokens = ["<s>", "<unk>", "▁", *pieces]
    scores = [0.0, 0.0, -1.0, *(-20.0 + len(piece) for piece in pieces)]
    found = {"model": model, "tokens": tokens, "token_type": [3, 2, 1, *types], "scores": scores, "merges": None}
    return metadata(**found, bos_token_id=0, eos_token_id=12, add_bos_token=False, add_space_prefix=False)
