"""The shape of a decoder, read from GGUF metadata: what the importer and the reference engine both build from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError, UnsupportedModelError
from .gguf_file import GgufFile

ARCHITECTURES = ("llama", "qwen2")
_REFUSED = {  # metadata (without prefix) that changes the computation in ways not built yet
    "expert_count": "mixtures of experts",
    "attention.sliding_window": "sliding-window attention",
    "logit_scale": "scaled logits",
    "residual_scale": "scaled residuals",
    "embedding_scale": "scaled embeddings",
    "attention.scale": "a scale of attention of its own",
}
_LAYER = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_BIASES = ("attn_q", "attn_k", "attn_v")

_MAX_CONTEXT = 1 << 20  # rotary tables of so many positions are still made in seconds

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes and constants of a llama-like decoder: pre-norm, rotary, grouped queries, gated SiLU."""

    architecture: str
    n_layers: int
    hidden_size: int
    n_heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    inverse_frequencies: npt.NDArray[np.float64]  # (head_dim / 2,) of the rotary embedding
    permuted: bool  # rows of q and k lie in pairs (i, i + 1), as llama's are in GGUF, not in halves

    def rotary_tables(self, n_positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """cos and sin, each (n_positions, head_dim / 2)."""
        angles = np.outer(np.arange(n_positions), self.inverse_frequencies)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def half_order(self, n_heads: int) -> npt.NDArray[np.int64]:
        """Row order that puts a permuted q or k of so many heads into halves (Hugging Face layout)."""
        rows = np.arange(n_heads * self.head_dim).reshape(n_heads, self.head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)


def decoder_shape(file: GgufFile) -> DecoderShape:
    """The shape of the model in a GGUF file.

    Raises UnsupportedModelError for what is not built yet, naming it, and ModelFileError for what contradicts itself.
    """
    arch = file.architecture
    if arch not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path} holds a model of the architecture {arch!r}; GGUF import knows {' and '.join(ARCHITECTURES)}."
        )
    for key, what in _REFUSED.items():
        if file.metadata.get(f"{arch}.{key}"):
            raise UnsupportedModelError(
                f"{file.path} uses {what} ({arch}.{key}), which GGUF import does not build yet."
            )
    hidden, n_heads = _need(file, "embedding_length", int), _need(file, "attention.head_count", int)
    head_dim = _get(file, "attention.key_length", hidden // max(n_heads, 1))
    if "token_embd.weight" not in file.tensors:
        raise ModelFileError(f"{file.path} has no tensor token_embd.weight.")
    shape = DecoderShape(
        architecture=arch,
        n_layers=_need(file, "block_count", int),
        hidden_size=hidden,
        n_heads=n_heads,
        kv_heads=_get(file, "attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_size=_need(file, "feed_forward_length", int),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=_need(file, "context_length", int),
        norm_epsilon=_need(file, "attention.layer_norm_rms_epsilon", float),
        inverse_frequencies=_inverse_frequencies(file, head_dim),
        permuted=arch == "llama",
    )
    if shape.context_length > _MAX_CONTEXT:
        raise UnsupportedModelError(
            f"{file.path} is made for contexts of {shape.context_length} tokens; at most {_MAX_CONTEXT} are built yet."
        )
    _check_sizes(file, shape)
    _check_tensors(file, shape)
    return shape


def _need(file: GgufFile, key: str, kind: type[N]) -> N:
    value = file.metadata.get(f"{file.architecture}.{key}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ModelFileError(f"{file.path}: {file.architecture}.{key} is {value!r}, but must be a positive number.")
    if kind is int and value != int(value):
        raise ModelFileError(f"{file.path}: {file.architecture}.{key} is {value!r}, but must be a whole number.")
    return kind(value)


def _get(file: GgufFile, key: str, default: N) -> N:
    if f"{file.architecture}.{key}" not in file.metadata:
        return default
    return _need(file, key, type(default))


def _inverse_frequencies(file: GgufFile, head_dim: int) -> npt.NDArray[np.float64]:
    """Rotary frequencies, with linear scaling or per-frequency factors (Llama 3) applied."""
    arch = file.architecture
    rotated = _get(file, "rope.dimension_count", head_dim)
    if rotated != head_dim or head_dim % 2:
        raise UnsupportedModelError(
            f"{file.path} rotates {rotated} of {head_dim} dimensions of a head; only whole, even heads are built yet."
        )
    frequencies = _get(file, "rope.freq_base", 10000.0) ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling = file.metadata.get(f"{arch}.rope.scaling.type", "linear")  # as llama.cpp takes a factor without a type
    if scaling == "linear":
        frequencies = frequencies / _get(file, "rope.scaling.factor", _get(file, "rope.scale_linear", 1.0))
    elif scaling != "none":
        raise UnsupportedModelError(
            f"{file.path} scales its rotary embedding by {scaling!r}; only linear scaling and factors are built yet."
        )
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:
        values = factors.values().reshape(-1)
        if len(values) != len(frequencies):
            raise ModelFileError(f"{file.path}: rope_freqs.weight has {len(values)} factors, not {len(frequencies)}.")
        if not (np.isfinite(values) & (values > 0)).all():
            raise ModelFileError(f"{file.path}: rope_freqs.weight holds factors that are not positive numbers.")
        frequencies = frequencies / values
    return np.asarray(frequencies, dtype=np.float64)


def _check_sizes(file: GgufFile, s: DecoderShape) -> None:
    if s.n_heads % s.kv_heads:
        raise ModelFileError(f"{file.path}: {s.n_heads} heads cannot share {s.kv_heads} key-value heads evenly.")
    queries, keys = s.n_heads * s.head_dim, s.kv_heads * s.head_dim
    expected = {
        "attn_q": (queries, s.hidden_size),
        "attn_k": (keys, s.hidden_size),
        "attn_v": (keys, s.hidden_size),
        "attn_output": (s.hidden_size, queries),
        "ffn_gate": (s.ffn_size, s.hidden_size),
        "ffn_up": (s.ffn_size, s.hidden_size),
        "ffn_down": (s.hidden_size, s.ffn_size),
        "attn_norm": (s.hidden_size,),
        "ffn_norm": (s.hidden_size,),
    }
    if s.n_layers > len(file.tensors):
        raise ModelFileError(f"{file.path} claims {s.n_layers} layers, but holds {len(file.tensors)} tensors.")
    names = {f"blk.{i}.{name}.weight": shape for i in range(s.n_layers) for name, shape in expected.items()}
    names["output_norm.weight"] = (s.hidden_size,)
    names["token_embd.weight"] = (s.vocab_size, s.hidden_size)
    if "output.weight" in file.tensors:
        names["output.weight"] = (s.vocab_size, s.hidden_size)
    check_shapes(file, names)


def check_shapes(file: GgufFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelFileError unless the file has each of these tensors in its shape."""
    for name, wanted in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{file.path} has no tensor {name}.")
        if tensor.shape != wanted:
            raise ModelFileError(f"{file.path}: tensor {name} has shape {tensor.shape}, but {wanted} was expected.")


def _check_tensors(file: GgufFile, s: DecoderShape) -> None:
    """Refuse a file with a tensor that would be ignored: its model computes something else."""
    known = {"token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"}
    for i in range(s.n_layers):
        known |= {f"blk.{i}.{name}.weight" for name in _LAYER} | {f"blk.{i}.{name}.bias" for name in _BIASES}
    unknown = sorted(set(file.tensors) - known)
    if unknown:
        raise UnsupportedModelError(
            f"{file.path} has the tensor {unknown[0]}, which a {s.architecture} model as built here would ignore."
        )
