"""T5 as GGUF: where its tensors lie and what its metadata says. Encoder and decoder share a file and a token table.

Names as in the `gguf` package's TensorNameMap; a test compares them. Source of what llama.cpp reads, and of what it
takes for granted: its src/models/t5.cpp and src/llama-graph.cpp (llama_relative_position_bucket).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import UnsupportedModelError
from ..sources.model_source import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOP = {
    "shared": "token_embd",
    "lm_head": "output",
    "encoder.final_layer_norm": "enc.output_norm",
    "decoder.final_layer_norm": "dec.output_norm",
}
_SELF = {
    "SelfAttention.q": "attn_q",
    "SelfAttention.k": "attn_k",
    "SelfAttention.v": "attn_v",
    "SelfAttention.o": "attn_o",
    "SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer_norm": "attn_norm",
}
_CROSS = {
    "EncDecAttention.q": "cross_attn_q",
    "EncDecAttention.k": "cross_attn_k",
    "EncDecAttention.v": "cross_attn_v",
    "EncDecAttention.o": "cross_attn_o",
    "layer_norm": "cross_attn_norm",
}
_MLP = {
    "DenseReluDense.wi": "ffn_up",
    "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
    "layer_norm": "ffn_norm",
}
_PARTS = {"encoder": ("enc", (_SELF, _MLP)), "decoder": ("dec", (_SELF, _CROSS, _MLP))}
_MAX_DISTANCE = 128
_ACTIVATIONS = {False: ("relu",), True: ("gelu_new", "gelu_pytorch_tanh")}  # gated or not


FAMILIES = ("t5", "mt5")  # model_type of transformers


class T5Layout:
    """How the T5 family lies in a GGUF file."""

    architecture = "t5"

    def gguf_name(self, name: str) -> str | None:
        """The GGUF name of a tensor of transformers; None where there is no place for it."""
        stem, _, kind = name.rpartition(".")
        if kind != "weight":
            return None
        if stem in _TOP:
            return f"{_TOP[stem]}.weight"
        match = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)", stem)
        if match is None:
            return None
        side, layers = _PARTS[match[1]]
        inner = layers[int(match[3])].get(match[4]) if int(match[3]) < len(layers) else None
        return None if inner is None else f"{side}.blk.{match[2]}.{inner}.weight"

    def keeps_f32(self, name: str) -> bool:
        """Whether a matrix (name of transformers) is never made f16.

        The table of distances is added to scores as it is; and what goes into the second half of T5's MLP exceeds
        f16, to which llama.cpp rounds what an f16 matrix is multiplied with. transformers keeps it in f32, too.
        """
        return name.endswith(("relative_attention_bias.weight", "DenseReluDense.wo.weight"))

    def arranged(self, name: str, values: npt.NDArray[np.float32], config: PretrainedConfig) -> npt.NDArray[np.float32]:
        """The values as the file has them: T5 divides what its head reads by sqrt(d_model), llama.cpp does not, so
        that the last norm does."""
        settings: Any = config
        if name == "decoder.final_layer_norm.weight" and getattr(settings, "scale_decoder_outputs", False):
            return np.asarray(values * np.float32(settings.d_model**-0.5), np.float32)
        return values


def check_t5(source: ModelSource) -> None:
    """Raise UnsupportedModelError for what llama.cpp would compute otherwise."""
    settings: Any = source.config()
    for name, found, wanted in (
        ("relative_attention_max_distance", settings.relative_attention_max_distance, (_MAX_DISTANCE,)),
        ("feed_forward_proj", settings.dense_act_fn, _ACTIVATIONS[bool(settings.is_gated_act)]),
    ):
        if found not in wanted:
            raise UnsupportedModelError(
                f"{source.path} cannot be written as GGUF: llama.cpp's t5 takes {' or '.join(map(str, wanted))} for "
                f"{name}, and this model has {found}. Export it to onnx."
            )
    if settings.num_decoder_layers > settings.num_layers:
        raise UnsupportedModelError(
            f"{source.path} cannot be written as GGUF: llama.cpp makes room for as many layers as the encoder has "
            f"({settings.num_layers}), and the decoder has {settings.num_decoder_layers}. Export it to onnx."
        )
    if source.encoder_decoder is not None and len(source.encoder_decoder.decoder_start) != 1:
        raise UnsupportedModelError(
            f"{source.path} cannot be written as GGUF: its answers begin with "
            f"{len(source.encoder_decoder.decoder_start)} tokens, and the format has a place for one. "
            "Export it to onnx."
        )


def t5_metadata(source: ModelSource, config: PretrainedConfig) -> dict[str, object]:
    """The metadata of this architecture. Raises UnsupportedModelError: see check_t5."""
    check_t5(source)
    assert source.encoder_decoder is not None
    settings: Any = config
    return {
        "t5.context_length": source.context_length,
        "t5.embedding_length": settings.d_model,
        "t5.feed_forward_length": settings.d_ff,
        "t5.block_count": settings.num_layers,
        "t5.decoder_block_count": settings.num_decoder_layers,
        "t5.attention.head_count": settings.num_heads,
        "t5.attention.key_length": settings.d_kv,
        "t5.attention.value_length": settings.d_kv,
        "t5.attention.layer_norm_epsilon": float(settings.layer_norm_epsilon),
        "t5.attention.layer_norm_rms_epsilon": float(settings.layer_norm_epsilon),
        "t5.attention.relative_buckets_count": settings.relative_attention_num_buckets,
        "t5.decoder_start_token_id": source.encoder_decoder.decoder_start[0],
        "t5.vocab_size": settings.vocab_size,
    }
