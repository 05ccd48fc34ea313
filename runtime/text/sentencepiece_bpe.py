"""SentencePiece's BPE from a GGUF file: pieces with scores, as merges for the tokenizers library.

SentencePiece joins the two neighbours whose joined text has the highest score; the library joins the pair whose merge
comes first. So every way to cut a piece in two is a merge, and merges are sorted by the piece's score.
Source: transformers, convert_slow_tokenizer.py; llama.cpp, llama-vocab.cpp (llm_tokenizer_spm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers

from ..errors import ModelFileError
from ..interfaces import Indices
from .gguf_vocabulary import BYTE, NORMAL, UNKNOWN, USER_DEFINED, add_tokens, read_vocabulary, token_scores

_BASE = 0x9E3779B97F4A7C15  # of hashes; odd, so that it has an inverse
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
    merges = merges_of(tokens, types, scores)
    model = models.BPE(vocab=known.ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_there > 0)
    inner = tokenizers.Tokenizer(model)
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefixed else back)
    add_tokens(inner, known, metadata)
    return inner


def merges_of(tokens: Sequence[str], types: Sequence[int], scores: npt.NDArray[np.float64]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best first.

    A large vocabulary has a million places to cut at. All are looked up at once, by the hashes of what stands before
    and behind them; whether the texts are those of the hashes is seen for the few that are found.
    """
    parts = np.flatnonzero(np.isin(types, (NORMAL, USER_DEFINED)))
    lengths = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
    begins = np.concatenate([[0], np.cumsum(lengths)])
    hashes = _Hashes(tokens)
    n_cuts = np.maximum(lengths[parts] - 1, 0)
    piece = np.repeat(parts, n_cuts)
    cut = begins[piece] + 1 + np.arange(n_cuts.sum()) - np.repeat(np.cumsum(n_cuts) - n_cuts, n_cuts)
    known = hashes.of(begins[parts], begins[parts + 1])
    order = np.argsort(known)
    known, parts = known[order], parts[order]

    def found(begin: Indices, end: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
        wanted = hashes.of(begin, end)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return parts[at], known[at] == wanted

    left, is_left = found(begins[piece], cut)
    piece, cut, left = piece[is_left], cut[is_left], left[is_left]
    right, is_right = found(cut, begins[piece + 1])
    piece, left, right = piece[is_right], left[is_right], right[is_right]
    rank = np.empty(len(tokens), dtype=np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(tokens))
    best = np.lexsort((right, left, rank[piece]))
    pairs = zip(piece[best].tolist(), left[best].tolist(), right[best].tolist(), strict=True)
    return [(tokens[a], tokens[b]) for whole, a, b in pairs if tokens[a] + tokens[b] == tokens[whole]]


class _Hashes:
    """Polynomial hashes of any part of any token, modulo 2 ** 64, from sums over all letters."""

    def __init__(self, tokens: Sequence[str]) -> None:
        letters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64) + 1
        self._powers = _powers(_BASE, len(letters) + 1)
        weighted = letters * _powers(pow(_BASE, -1, 1 << 64), len(letters))
        self._sums = np.concatenate([[np.uint64(0)], np.cumsum(weighted, dtype=np.uint64)])

    def of(self, begin: Indices, end: Indices) -> npt.NDArray[np.uint64]:
        """The hashes of letters[begin:end], the same wherever a text stands."""
        hashes: npt.NDArray[np.uint64] = (self._sums[end] - self._sums[begin]) * self._powers[end]
        return hashes


def _powers(base: int, n: int) -> npt.NDArray[np.uint64]:
    """base ** 0, base ** 1, ..., (n,)."""
    powers = np.full(n, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)
