"""BPE over whole lines from a GGUF file, as Gemma 4's: spaces as U+2581, and bytes as tokens where no other is there.

Source: llama.cpp, llama-vocab.cpp (LLAMA_VOCAB_PRE_TYPE_GEMMA4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from ..errors import ModelFileError
from .gguf_vocabulary import UNKNOWN, add_tokens, read_vocabulary, strings
from .sentencepiece_bpe import SPACE


def line_bpe(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer that the metadata describes. Raises ModelFileError."""
    merges = strings(metadata, "tokenizer.ggml.merges")
    known = read_vocabulary(metadata, merges)
    ids = known.ids
    unknown = next((text for text, kind in zip(known.texts, known.types, strict=True) if kind == UNKNOWN), None)
    bytes_there = sum(f"<0x{byte:02X}>" in ids for byte in range(256))
    if unknown is None and bytes_there < 256:
        raise ModelFileError(
            f"the GGUF file's vocabulary has {bytes_there} tokens for single bytes and none for what is unknown, so "
            "that not every text can be written."
        )
    inner = tokenizers.Tokenizer(bpe(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_there > 0))
    inner.normalizer = normalizers.Replace(" ", SPACE)
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    inner.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    add_tokens(inner, known, metadata)
    return inner


def bpe(
    vocabulary: dict[str, int],
    merges: Sequence[str],
    *,
    ignore_merges: bool = False,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
) -> models.BPE:
    """The merges of a file, best first, over its vocabulary. Raises ModelFileError where they do not fit together."""
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise ModelFileError(f"the GGUF file's merge {merge!r} is not two tokens with a space between them.")
        pairs.append((left, right))
    try:
        return models.BPE(
            vocab=vocabulary,
            merges=pairs,
            ignore_merges=ignore_merges,
            unk_token=unk_token,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
        )
    except Exception as error:  # the library raises plain Exception for a merge whose result is no token
        raise ModelFileError(f"the GGUF file's vocabulary and merges do not fit together: {error}.") from error
