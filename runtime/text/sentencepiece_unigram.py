"""SentencePiece's unigram model from a GGUF file: of all cuts of a word into pieces the most probable one.

Source: llama.cpp, llama-vocab.cpp (llm_tokenizer_ugm); transformers, tokenization_t5.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from ..errors import ModelFileError
from .gguf_vocabulary import UNKNOWN, add_tokens, read_vocabulary, token_scores
from .sentencepiece_bpe import SPACE

_BEGINNING = r"\A(?= *[^ ])"  # of a text that is more than spaces


def sentencepiece_unigram(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer that the metadata describes. Raises ModelFileError."""
    known = read_vocabulary(metadata)
    tokens, types = known.texts, known.types
    scores = token_scores(metadata, len(tokens))
    pieces = [(text, float(score)) for text, score in zip(tokens, scores, strict=True)]
    merged = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))  # each word begins with a space then
    prefixed = merged or bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    unknown = _unknown(metadata, types)
    try:
        inner = tokenizers.Tokenizer(models.Unigram(pieces, unknown, False))
        charsmap = _charsmap(metadata)
        before = [normalizers.Precompiled(charsmap)] if charsmap else []
        before += [normalizers.Replace(Regex(_BEGINNING), SPACE)] if prefixed and not merged else []
    except Exception as error:  # the library raises plain Exception for whatever it cannot use
        raise ModelFileError(f"the GGUF file's vocabulary is not one of SentencePiece: {error}.") from error
    if before:
        inner.normalizer = normalizers.Sequence(before)
    spaces = pre_tokenizers.Metaspace(SPACE, "always" if merged else "never")
    if merged:
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(" +"), "removed"), spaces])
    else:
        inner.pre_tokenizer = spaces
    inner.decoder = decoders.Metaspace(SPACE, "always" if prefixed else "never")
    add_tokens(inner, known, metadata)
    return inner


def _unknown(metadata: Mapping[str, object], types: Sequence[int]) -> int:
    """The token for what is unknown. Raises ModelFileError."""
    named = metadata.get("tokenizer.ggml.unknown_token_id")
    if isinstance(named, int) and 0 <= named < len(types):
        return int(named)
    if UNKNOWN not in types:
        raise ModelFileError("the GGUF file's vocabulary has no token for what is unknown.")
    return types.index(UNKNOWN)


def _charsmap(metadata: Mapping[str, object]) -> bytes:
    """What characters are replaced by, as SentencePiece compiles it; empty where the file has none."""
    value = metadata.get("tokenizer.ggml.precompiled_charsmap", b"")
    if isinstance(value, bytes):
        return value
    values = np.asarray(value)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ModelFileError("the GGUF file's tokenizer.ggml.precompiled_charsmap does not hold bytes.")
    return values.astype(np.uint8).tobytes()
