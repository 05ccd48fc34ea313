"""SentencePiece's BPE from a GGUF file: pieces with scores, as merges for the tokenizers library.

SentencePiece joins the two neighbours whose joined text has the highest score; the library joins the pair whose merge
comes first. So every way to cut a piece in two is a merge, and merges are sorted by the piece's score.
Source: transformers, convert_slow_tokenizer.py; llama.cpp, llama-vocab.cpp (llm_tokenizer_spm).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers

from ..errors import ModelFileError
from .gguf_vocabulary import BYTE, NORMAL, UNKNOWN, USER_DEFINED, add_tokens, read_vocabulary, token_scores

SPACE = "\u2581"  # the lower one eighth block


def sentencepiece_bpe(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer that the metadata describes. Raises ModelFileError."""
    known = read_vocabulary(metadata)
    tokens, types = known.texts, known.types
    scores = token_scores(metadata, len(tokens))
    unknown = next((text for text, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    bytes_there = sum(kind == BYTE for kind in types)
    if unknown is None and bytes_there < 256:
        raise ModelFileError(
            f"the GGUF file's vocabulary has {bytes_there} tokens for single bytes and none for what is unknown, so "
            "that not every text can be written."
        )
    pairs = list(merges(tokens, types, scores, known.ids))
    model = models.BPE(vocab=known.ids, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_there > 0)
    inner = tokenizers.Tokenizer(model)
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefixed else back)
    add_tokens(inner, known, metadata)
    return inner


def merges(
    tokens: Sequence[str], types: Sequence[int], scores: npt.NDArray[np.float64], vocabulary: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two others, best first."""
    joined = {i for i, kind in enumerate(types) if kind in (NORMAL, USER_DEFINED) and len(tokens[i]) > 1}
    parts = {text for text, i in vocabulary.items() if types[i] in (NORMAL, USER_DEFINED)}
    for i in np.argsort(-scores, kind="stable"):
        if int(i) not in joined:
            continue
        text = tokens[i]
        cuts = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in parts and text[at:] in parts]
        yield from sorted(cuts, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
