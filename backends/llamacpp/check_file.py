"""Checks a GGUF file before llama.cpp sees it: what llama.cpp trusts, and ends the process over, is tried here.

The vocabulary is not checked, because it is not read: llama.cpp is told that there is none (placement.py).
"""

from __future__ import annotations

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.decoder_shape import ARCHITECTURES
from ...runtime.files.gguf_file import GgufFile
from .shape import LlamaCppShape, decoder_only_shape, require_causal
from .t5_shape import t5_shape

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MATRIX_TYPES = frozenset(
    (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
        *("TQ1_0", "TQ2_0", "MXFP4"),
    )
)
_REFUSED = {  # metadata (without prefix) that makes llama.cpp build another graph, or stop
    "expert_used_count": "mixtures of experts",
    "expert_group_count": "mixtures of experts",
    "expert_group_used_count": "mixtures of experts",
    "nextn_predict_layers": "layers that predict several tokens",
    "pooling_type": "pooled embeddings",
    "embedding_length_out": "another width of its output",
    "rope.scaling.yarn_log_multiplier": "YaRN",
    "attention.alibi_bias_max": "ALiBi",
    "attention.clamp_kqv": "clamped attention",
}


def check_file(file: GgufFile) -> LlamaCppShape:
    """The shape of the model in a file that llama.cpp can be given.

    Raises ModelFileError for what contradicts itself and UnsupportedModelError for what is not known here.
    """
    if file.architecture not in (*ARCHITECTURES, "t5"):
        raise UnsupportedModelError(f"{file.path} holds a {file.architecture} model, which llama.cpp is tried on.")
    shape = t5_shape(file) if file.architecture == "t5" else decoder_only_shape(file)
    arch = shape.architecture
    for key, what in _REFUSED.items():
        if file.metadata.get(f"{arch}.{key}"):
            raise UnsupportedModelError(f"{file.path} uses {what} ({arch}.{key}), which is not supported yet.")
    require_causal(file)
    if "" in file.metadata:
        raise ModelFileError(f"{file.path} has metadata without a name. Fetch or copy it again.")
    n_layers = shape.cached_layers
    if n_layers > _MAX_LAYERS:
        raise UnsupportedModelError(f"{file.path} has {n_layers} layers; llama.cpp runs {_MAX_LAYERS} at most.")
    value_length = file.metadata.get(f"{arch}.attention.value_length", shape.head_dim)
    if value_length != shape.head_dim:
        raise UnsupportedModelError(
            f"{file.path} has values of {value_length} numbers and keys of {shape.head_dim}; they must be alike."
        )
    for name, tensor in file.tensors.items():
        wanted = _MATRIX_TYPES if len(tensor.shape) == 2 else {"F32"}
        if tensor.type_name not in wanted:
            raise UnsupportedModelError(f"{file.path}: tensor {name} has the type {tensor.type_name}.")
    return shape
