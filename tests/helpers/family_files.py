"""A tiny random model of each family that is read from .gguf files, in transformers and as such a file.

The files are written here and not by the exporter: names from the gguf package, the rest as llama.cpp's converter does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt
from expert_files import experts_of, random_experts
from gemma4_files import LARGE, LARGE_KEYS, PROPORTIONAL, SMALL, SMALL_KEYS, gemma4_layer, usual_layer
from tiny_families import random_decoder

from pilotfish.runtime.files.decoder_families import FAMILIES
from pilotfish.testing.tiny_models import CHATML, add_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCAB_SIZE = 272  # of the tokenizer of tiny files
CONTEXT = 256
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,  # wide enough for logits to depend on what is attended to
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
_EXPERTS = {"expert_count": 5, "expert_used_count": 2}
_LOCAL_EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
_SHORT, _LONG = np.linspace(1.0, 1.5, 6).tolist(), np.linspace(1.0, 8.0, 6).tolist()


@dataclass(frozen=True)
class Made:
    """A family: of transformers, of GGUF, the settings of the one and the metadata of the other that go together."""

    model_type: str
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, float | int | str | bool | list[bool] | list[int]] = field(default_factory=dict)
    pairs: bool = False
    norm_offset: float = 0.0
    tensors: dict[str, list[float]] = field(default_factory=dict)


MADE: dict[str, Made] = {
    "qwen3": Made("qwen3", "qwen3", {"head_dim": 32}),
    "qwen3 yarn": Made("qwen3", "qwen3", {"rope_parameters": _YARN}, _YARN_KEYS),
    "qwen2 yarn": Made("qwen2", "qwen2", {"rope_parameters": _YARN, "tie_word_embeddings": True}, _YARN_KEYS),
    "gemma3": Made(
        "gemma3_text",
        "gemma3",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": _PLAIN,
            },
        },
        {
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [True, True, False],
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        norm_offset=1.0,
    ),
    "gemma2": Made(
        "gemma2",
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        {"attention.sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        norm_offset=1.0,
    ),
    "gemma": Made("gemma", "gemma", {"head_dim": 32, "num_key_value_heads": 1}, norm_offset=1.0),
    # As E2B and E4B are made, and as 12B and 31B.
    "gemma4": Made("gemma4_text", "gemma4", SMALL, SMALL_KEYS, tensors=PROPORTIONAL),
    "gemma4 without layer inputs": Made("gemma4_text", "gemma4", LARGE, LARGE_KEYS, tensors=PROPORTIONAL),
    "phi3": Made("phi3", "phi3", {"sliding_window": None}, {"attention.sliding_window": 0}),
    "phi3 with a window": Made("phi3", "phi3", {"sliding_window": 10}, {"attention.sliding_window": 10}),
    "phi3 longrope": Made(
        "phi3",
        "phi3",
        {
            "sliding_window": None,
            "max_position_embeddings": 4 * CONTEXT,
            "original_max_position_embeddings": CONTEXT,
            "partial_rotary_factor": 0.75,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": _SHORT,
                "long_factor": _LONG,
                "original_max_position_embeddings": CONTEXT,
                "partial_rotary_factor": 0.75,
            },
        },
        {
            "attention.sliding_window": 262144,
            "rope.dimension_count": 12,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": CONTEXT,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(CONTEXT))),
            "context_length": 4 * CONTEXT,
        },
        tensors={"rope_factors_short.weight": _SHORT, "rope_factors_long.weight": _LONG},
    ),
    "mistral3": Made(
        "ministral3",
        "mistral3",
        {
            "head_dim": 32,
            "rope_parameters": {
                **_YARN,
                "original_max_position_embeddings": 16,
                "factor": 16.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        {
            **_YARN_KEYS,
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.1,
        },
        pairs=True,
    ),
    "granite": Made(
        "granite",
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.4,
            "logits_scaling": 4.0,
        },
        {"embedding_scale": 3.0, "residual_scale": 0.5, "attention.scale": 0.4, "logit_scale": 4.0},
        pairs=True,
    ),
    "smollm3": Made("smollm3", "smollm3", {"num_hidden_layers": 5}, pairs=True),
    "olmo2": Made("olmo2", "olmo2"),
    "qwen3moe": Made(
        "qwen3_moe",
        "qwen3moe",
        {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True},
        {**_EXPERTS, "expert_feed_forward_length": 96},
    ),
    "gpt-oss": Made(
        "gpt_oss",
        "gpt-oss",
        {
            **_LOCAL_EXPERTS,
            "head_dim": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
        },
        {**_EXPERTS, **_YARN_KEYS, "expert_feed_forward_length": 128, "attention.sliding_window": 8},
    ),
    "mixtral": Made("mixtral", "llama", _LOCAL_EXPERTS, _EXPERTS, pairs=True),
    "qwen2moe": Made(
        "qwen2_moe",
        "qwen2moe",
        {
            **{"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False},
            **{"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
        },
        {**_EXPERTS, "expert_feed_forward_length": 64, "expert_shared_feed_forward_length": 96},
    ),
    "granitemoe": Made(
        "granitemoe",
        "granitemoe",
        {
            **_LOCAL_EXPERTS,
            **{"embedding_multiplier": 3.0, "residual_multiplier": 0.5},
            **{"attention_multiplier": 0.4, "logits_scaling": 4.0},
        },
        {
            **_EXPERTS,
            **{"embedding_scale": 3.0, "residual_scale": 0.5, "attention.scale": 0.4, "logit_scale": 4.0},
        },
        pairs=True,
    ),
    "olmoe": Made(
        "olmoe",
        "olmoe",
        {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False, "num_key_value_heads": 4},
        _EXPERTS,
    ),
    "llama with biases": Made("llama", "llama", {"attention_bias": True}, pairs=True),
    "llama yarn": Made("llama", "llama", {"rope_parameters": _YARN}, _YARN_KEYS, pairs=True),
}


def tiny_of(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of this family in transformers, in f32 and eval mode. changes: other entries of its config."""
    made = MADE[name]
    return random_decoder(made.model_type, {**_SIZES, **made.settings, **changes}, seed)


def write_family(name: str, model: PreTrainedModel, path: Path) -> Path:
    """The model of tiny_of() as a .gguf file in f32, with a tiny tokenizer."""
    made, config = MADE[name], model.config
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == made.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    scales = ((f"{name}.weight", x) for name, x in model.named_buffers() if name.endswith("layer_scalar"))
    for parameter, values in (*model.named_parameters(), *scales):
        array = values.detach().numpy().astype(np.float32)
        if experts := experts_of(parameter, array, turned=made.model_type == "gpt_oss"):
            tensors |= experts
            continue
        tensor = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        assert tensor is not None, parameter
        if parameter.endswith("sinks"):
            tensor = f"{tensor}.weight"
        if parameter.endswith("shared_expert_gate.weight"):
            array = array[0]
        stem = tensor.split(".")[-2]
        if made.pairs and stem in heads:
            array = _pairs(array, heads[stem])
        tensors[tensor] = array + np.float32(made.norm_offset) if "norm" in parameter else array
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": _rope_base(config),
    }
    return _write(made, sizes, tensors, path)


def random_family(name: str, path: Path, *, quant: str = "F32", seed: int = 0, kv_heads: int | None = None) -> Path:
    """A random .gguf file of this family, made without transformers. quant: type of the matrices."""
    made, rng = MADE[name], np.random.default_rng(seed)
    family, chosen = FAMILIES[made.architecture], {**_SIZES, **made.settings}
    hidden, ffn, head_dim = chosen["hidden_size"], chosen["intermediate_size"], chosen["head_dim"]
    layers, heads, context = (
        chosen["num_hidden_layers"],
        chosen["num_attention_heads"],
        _SIZES["max_position_embeddings"],
    )
    kv_heads = kv_heads or int(chosen["num_key_value_heads"])
    mixture = family.mixture if made.metadata.get("expert_count") else None
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB_SIZE, hidden), "output_norm.weight": (hidden,)}
    if mixture is not None:  # of which several must have one, for llama.cpp
        tensors["output.weight"] = (VOCAB_SIZE, hidden)
    if chosen.get("hidden_size_per_layer_input"):
        size = chosen["hidden_size_per_layer_input"]
        tensors |= {"per_layer_token_embd.weight": (VOCAB_SIZE, layers * size), "per_layer_proj_norm.weight": (size,)}
        tensors |= {"per_layer_model_proj.weight": (layers * size, hidden)}
    for i in range(layers):
        if made.architecture == "gemma4":
            matrices, norms = gemma4_layer(chosen, i, kv_heads)
        else:
            matrices, norms = usual_layer(family, chosen, kv_heads)
        if mixture is not None:
            matrices = {tensor: shape for tensor, shape in matrices.items() if not tensor.startswith("ffn")}
        tensors |= {f"blk.{i}.{tensor}.weight": shape for tensor, shape in matrices.items()}
        tensors |= {f"blk.{i}.{tensor}.weight": (width,) for tensor, width in norms.items()}
        tensors |= {f"blk.{i}.{tensor}.bias": matrices[tensor][:1] for tensor in family.biases}
        if mixture is not None:
            own = random_experts(mixture, made.metadata, hidden, ffn)
            tensors |= {f"blk.{i}.{tensor}": shape for tensor, shape in own.items()}
        if family.sinks:
            tensors[f"blk.{i}.attn_sinks.weight"] = (heads,)
    made_up = {}
    for tensor, shape in tensors.items():
        if tensor.endswith("bias") or tensor.endswith(("sinks.weight", "inp_shexp.weight")):
            made_up[tensor] = rng.normal(0.0, 0.5, shape).astype(np.float32)
        elif len(shape) >= 2:  # wide enough for answers to depend on what is attended to
            made_up[tensor] = rng.normal(0.0, 2.0 / np.sqrt(shape[-1]), shape).astype(np.float32)
        else:
            made_up[tensor] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    sizes = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    return _write(made, sizes, made_up, path, quant)


def _write(
    made: Made, sizes: dict[str, Any], tensors: dict[str, npt.NDArray[np.float32]], path: Path, quant: str = "F32"
) -> Path:
    writer = gguf.GGUFWriter(path, made.architecture)
    add_tokenizer(writer, CHATML)
    for key, value in {**sizes, **made.metadata}.items():
        _add(writer, f"{made.architecture}.{key}", value)
    for tensor, array in tensors.items():
        plain = array.ndim < 2 or tensor.endswith(("bias", "ffn_gate_inp.weight"))
        kind = gguf.GGMLQuantizationType["F32" if plain else quant]
        writer.add_tensor(tensor, gguf.quants.quantize(array, kind), raw_dtype=kind)
    for tensor, numbers in made.tensors.items():
        writer.add_tensor(tensor, np.array(numbers, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _rope_base(config: Any) -> float:
    rope = config.rope_parameters
    return float(rope.get("full_attention", rope)["rope_theta"])


def _pairs(array: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of each head in pairs, as llama.cpp's converter puts them."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
