"""Sizes of the models that llama.cpp runs: our own importers' decoders, Qwen 3, Gemma 3, Phi-3 (T5: t5_shape.py).

Everything that llama.cpp reads from such a file is checked here. Source: llama.cpp, src/models/*.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.decoder_shape import ARCHITECTURES, check_shapes, decoder_shape
from ...runtime.files.gguf_file import GgufFile

_OTHERS = ("qwen3", "gemma3", "phi3")
_REFUSED = {  # metadata (without prefix) that these files have only where they are something else
    "expert_count": "mixtures of experts",
    "final_logit_softcapping": "capped logits",
    "attn_logit_softcapping": "capped attention",
    "attention.scale": "a scale of attention of its own",
    "logit_scale": "scaled logits",
    "dense_2_feat_out": "a layer after the last",
    "attention.key_length_swa": "another length of keys in layers with a window",
    "attention.value_length_swa": "another length of values in layers with a window",
}
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
    """The shape of the decoder in a file. Raises UnsupportedModelError and ModelFileError."""
    arch = file.architecture
    if arch in ARCHITECTURES:
        s = decoder_shape(file)
        return LlamaCppShape(
            *(arch, s.n_layers, s.hidden_size, s.n_heads, s.kv_heads, s.head_dim, s.vocab_size, s.context_length),
            cached_layers=s.n_layers,
        )
    if arch not in _OTHERS:
        raise UnsupportedModelError(
            f"{file.path} holds a model of the architecture {arch!r}; the llamacpp engine is known to run "
            f"{', '.join((*ARCHITECTURES, *_OTHERS))}, and t5."
        )
    for key, what in _REFUSED.items():
        if file.metadata.get(f"{arch}.{key}"):
            raise UnsupportedModelError(f"{file.path} uses {what} ({arch}.{key}), which is not supported yet.")
    if "token_embd.weight" not in file.tensors or len(file.tensors["token_embd.weight"].shape) != 2:
        raise ModelFileError(f"{file.path} has no matrix token_embd.weight.")
    hidden, n_heads = whole(file, "embedding_length"), whole(file, "attention.head_count")
    shape = LlamaCppShape(
        architecture=arch,
        n_layers=whole(file, "block_count"),
        hidden_size=hidden,
        n_heads=n_heads,
        kv_heads=whole(file, "attention.head_count_kv", n_heads),
        head_dim=whole(file, "attention.key_length", hidden // n_heads),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=whole(file, "context_length"),
        cached_layers=whole(file, "block_count"),
    )
    _check(file, shape)
    _check_tensors(file, shape, whole(file, "feed_forward_length"))
    return shape


def whole(file: GgufFile, key: str, default: int | None = None) -> int:
    """A positive whole number from the metadata; the default where there is none."""
    name = f"{file.architecture}.{key}"
    value = file.metadata.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 30:
        raise ModelFileError(f"{file.path}: {name} is {value!r}, but must be a positive whole number.")
    return value


def _check(file: GgufFile, s: LlamaCppShape) -> None:
    arch = s.architecture
    if s.n_layers > len(file.tensors):
        raise ModelFileError(f"{file.path} claims {s.n_layers} layers, but holds {len(file.tensors)} tensors.")
    if s.context_length > MAX_CONTEXT:
        raise UnsupportedModelError(
            f"{file.path} is made for contexts of {s.context_length} tokens, which is too long."
        )
    if s.n_heads % s.kv_heads:
        raise ModelFileError(f"{file.path}: {s.n_heads} heads cannot share {s.kv_heads} key-value heads evenly.")
    rotated = whole(file, "rope.dimension_count", s.head_dim)
    if s.head_dim % 2 or rotated % 2 or rotated > s.head_dim:
        raise ModelFileError(f"{file.path}: {rotated} of {s.head_dim} numbers of a head cannot be rotated in pairs.")
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor"):
        value = file.metadata.get(f"{arch}.{key}", None if key.startswith("attention") else 1.0)
        if not isinstance(value, float) or not 0 < value < 1e9:
            raise ModelFileError(f"{file.path}: {arch}.{key} is {value!r}, but must be a positive number.")
    scaling = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedModelError(f"{file.path} scales its rotary embedding by {scaling!r}, which is not supported.")
    if f"{arch}.attention.sliding_window" in file.metadata:
        whole(file, "attention.sliding_window")
    pattern = file.metadata.get(f"{arch}.attention.sliding_window_pattern", 1)
    if isinstance(pattern, list):
        if len(pattern) != s.n_layers or not all(isinstance(x, bool) for x in pattern):
            raise ModelFileError(f"{file.path}: sliding_window_pattern does not have a yes or no for each layer.")
    else:
        whole(file, "attention.sliding_window_pattern", 1)


def _check_tensors(file: GgufFile, s: LlamaCppShape, ffn: int) -> None:
    queries, keys = s.n_heads * s.head_dim, s.kv_heads * s.head_dim
    inner: dict[str, tuple[int, ...]] = {
        "attn_norm": (s.hidden_size,),
        "ffn_norm": (s.hidden_size,),
        "attn_output": (s.hidden_size, queries),
        "ffn_down": (s.hidden_size, ffn),
    }
    if s.architecture == "phi3":
        inner |= {"attn_qkv": (queries + 2 * keys, s.hidden_size), "ffn_up": (2 * ffn, s.hidden_size)}
    else:
        inner |= {"attn_q": (queries, s.hidden_size), "attn_k": (keys, s.hidden_size), "attn_v": (keys, s.hidden_size)}
        inner |= {"ffn_gate": (ffn, s.hidden_size), "ffn_up": (ffn, s.hidden_size)}
        inner |= {"attn_q_norm": (s.head_dim,), "attn_k_norm": (s.head_dim,)}
    if s.architecture == "gemma3":
        inner |= {"post_attention_norm": (s.hidden_size,), "post_ffw_norm": (s.hidden_size,)}
    expected = {f"blk.{i}.{name}.weight": shape for i in range(s.n_layers) for name, shape in inner.items()}
    expected |= {"output_norm.weight": (s.hidden_size,), "token_embd.weight": (s.vocab_size, s.hidden_size)}
    if "output.weight" in file.tensors:
        expected["output.weight"] = (s.vocab_size, s.hidden_size)
    check_shapes(file, expected)
    unknown = sorted(file.tensors.keys() - expected.keys())
    if unknown:
        raise UnsupportedModelError(f"{file.path} has the tensor {unknown[0]}, which is not known here.")
