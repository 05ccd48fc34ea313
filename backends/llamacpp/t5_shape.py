"""Sizes of a T5 in a GGUF file: an encoder and a decoder that share a table of tokens.

Everything that llama.cpp reads from such a file, or takes for granted of it, is checked here. Source: llama.cpp,
src/models/t5.cpp and src/llama-graph.cpp (llama_relative_position_bucket).
"""

from __future__ import annotations

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.decoder_shape import check_shapes
from ...runtime.files.gguf_file import GgufFile
from .shape import MAX_CONTEXT, LlamaCppShape, whole

_BUCKETS = range(4, 256)  # of distances: fewer and more divide by zero, because the farthest distance is always 128


def t5_shape(file: GgufFile) -> LlamaCppShape:
    """The shape of an encoder-decoder. Raises UnsupportedModelError and ModelFileError."""
    if "token_embd.weight" not in file.tensors or len(file.tensors["token_embd.weight"].shape) != 2:
        raise ModelFileError(f"{file.path} has no matrix token_embd.weight.")
    hidden, n_heads = whole(file, "embedding_length"), whole(file, "attention.head_count")
    n_encoders = whole(file, "block_count")
    shape = LlamaCppShape(
        architecture="t5",
        n_layers=whole(file, "decoder_block_count", n_encoders),
        hidden_size=hidden,
        n_heads=n_heads,
        kv_heads=whole(file, "attention.head_count_kv", n_heads),
        head_dim=whole(file, "attention.key_length", hidden // n_heads),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=whole(file, "context_length"),
        cached_layers=n_encoders,
        decoder_start=_start(file),
    )
    _check(file, shape)
    _check_tensors(file, shape, whole(file, "feed_forward_length"), whole(file, "attention.relative_buckets_count"))
    return shape


def _start(file: GgufFile) -> int:
    value = file.metadata.get("t5.decoder_start_token_id")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ModelFileError(
            f"{file.path} does not say which token its answers go on from (t5.decoder_start_token_id is {value!r}). "
            "Convert the model again."
        )
    return value


def _check(file: GgufFile, s: LlamaCppShape) -> None:
    if s.cached_layers > len(file.tensors):
        raise ModelFileError(f"{file.path} claims {s.cached_layers} layers, but holds {len(file.tensors)} tensors.")
    if s.n_layers > s.cached_layers:
        raise UnsupportedModelError(
            f"{file.path} has {s.n_layers} layers in its decoder and {s.cached_layers} in its encoder: llama.cpp makes "
            "room for as many as the encoder has. Export the model to onnx."
        )
    if s.context_length > MAX_CONTEXT:
        raise UnsupportedModelError(f"{file.path} is made for answers of {s.context_length} tokens, which is too long.")
    if s.kv_heads != s.n_heads:
        raise UnsupportedModelError(f"{file.path}: {s.n_heads} heads share {s.kv_heads} key-value heads, as in no T5.")
    if s.decoder_start is None or s.decoder_start >= s.vocab_size:
        raise ModelFileError(f"{file.path}: answers go on from token {s.decoder_start} of {s.vocab_size}.")
    epsilon = file.metadata.get("t5.attention.layer_norm_rms_epsilon")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ModelFileError(f"{file.path}: t5.attention.layer_norm_rms_epsilon is {epsilon!r}, no small number.")


def _check_tensors(file: GgufFile, s: LlamaCppShape, ffn: int, n_buckets: int) -> None:
    if n_buckets not in _BUCKETS:
        raise UnsupportedModelError(
            f"{file.path} tells {n_buckets} distances apart (t5.attention.relative_buckets_count); llama.cpp can "
            f"compute with {_BUCKETS.start} to {_BUCKETS.stop - 1}."
        )
    inner, wide = s.n_heads * s.head_dim, s.hidden_size
    attention = {"q": (inner, wide), "k": (inner, wide), "v": (inner, wide), "o": (wide, inner), "norm": (wide,)}
    mlp = {"ffn_norm": (wide,), "ffn_up": (ffn, wide), "ffn_down": (wide, ffn)}
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (s.vocab_size, wide)}
    distances = {}
    for part, n_layers in (("enc", s.cached_layers), ("dec", s.n_layers)):
        names = {f"attn_{name}": shape for name, shape in attention.items()} | mlp
        if f"{part}.blk.0.ffn_gate.weight" in file.tensors:
            names["ffn_gate"] = (ffn, wide)
        if part == "dec":
            names |= {f"cross_attn_{name}": shape for name, shape in attention.items()}
        for layer in range(n_layers):
            expected |= {f"{part}.blk.{layer}.{name}.weight": shape for name, shape in names.items()}
            distances[f"{part}.blk.{layer}.attn_rel_b.weight"] = (n_buckets, s.n_heads)
        expected[f"{part}.output_norm.weight"] = (wide,)
        expected[f"{part}.blk.0.attn_rel_b.weight"] = (n_buckets, s.n_heads)  # other layers may use the first one's
    optional = {"output.weight": (s.vocab_size, wide), **distances}
    expected |= {name: shape for name, shape in optional.items() if name in file.tensors}
    check_shapes(file, expected)
    unused = {f"dec.blk.{layer}.cross_attn_rel_b.weight" for layer in range(s.n_layers)}  # of the first T5s
    unknown = sorted(file.tensors.keys() - expected.keys() - unused)
    if unknown:
        raise UnsupportedModelError(f"{file.path} has the tensor {unknown[0]}, which a T5 as known here has not.")
