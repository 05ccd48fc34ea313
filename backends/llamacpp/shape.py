"""Sizes of the models that llama.cpp runs: of our own importers' decoders, and what other files claim of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.gguf_file import GgufFile

MAX_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True)
class LlamaCppShape:
    """What has to be known of a model that llama.cpp computes; of an encoder-decoder, its decoder."""

    architecture: str
    n_layers: int
    hidden_size: int
    n_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    cached_layers: int  # for which llama.cpp makes room in its cache
    decoder_start: int | None = None  # what the answers of an encoder-decoder go on from; None: a decoder


def decoder_only_shape(file: GgufFile) -> LlamaCppShape:
    """The shape of a decoder that our own importers know, checked to the last tensor.

    Raises UnsupportedModelError and ModelFileError.
    """
    s = decoder_shape(file)
    return LlamaCppShape(
        *(s.architecture, s.n_layers, s.hidden_size, s.n_heads, s.kv_heads, s.head_dim, s.vocab_size),
        context_length=s.context_length,
        cached_layers=s.n_layers,
    )


def claimed_shape(file: GgufFile) -> LlamaCppShape:
    """The shape that any file claims, as far as callers are told of it; llama.cpp has its own reading of the rest.

    A model without attention has one head as wide as the model. Raises ModelFileError and UnsupportedModelError.
    """
    require_causal(file)
    hidden, n_layers = whole(file, "embedding_length"), whole(file, "block_count")
    n_heads = _largest(file, "attention.head_count", 1)
    kv_heads = _largest(file, "attention.head_count_kv", n_heads)
    return LlamaCppShape(
        architecture=file.architecture,
        n_layers=n_layers,
        hidden_size=hidden,
        n_heads=n_heads,
        kv_heads=kv_heads if n_heads % kv_heads == 0 else n_heads,
        head_dim=_largest(file, "attention.key_length", max(hidden // n_heads, 1)),
        vocab_size=_vocab_size(file),
        context_length=min(whole(file, "context_length"), MAX_CONTEXT),
        cached_layers=n_layers,
    )


def require_causal(file: GgufFile) -> None:
    """Raise UnsupportedModelError where a token sees those behind it."""
    if file.metadata.get(f"{file.architecture}.attention.causal", True) is not True:
        raise UnsupportedModelError(f"{file.path} is no model that continues text: its attention is not causal.")


def _largest(file: GgufFile, key: str, default: int) -> int:
    """A whole number, or the largest of those that a file has for each layer; the default where none is positive."""
    value = file.metadata.get(f"{file.architecture}.{key}", default)
    numbers = value if isinstance(value, list) else [value]
    sizes = [x for x in numbers if isinstance(x, int) and not isinstance(x, bool) and 0 < x < 1 << 30]
    return max(sizes, default=default)


def _vocab_size(file: GgufFile) -> int:
    table, tokens = file.tensors.get("token_embd.weight"), file.metadata.get("tokenizer.ggml.tokens")
    if table is not None and len(table.shape) == 2:
        return table.shape[0]
    return len(tokens) if isinstance(tokens, list) and tokens else whole(file, "vocab_size")


def whole(file: GgufFile, key: str, default: int | None = None) -> int:
    """A positive whole number from the metadata; the default where there is none."""
    name = f"{file.architecture}.{key}"
    value = file.metadata.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 30:
        raise ModelFileError(f"{file.path}: {name} is {value!r}, but must be a positive whole number.")
    return value
