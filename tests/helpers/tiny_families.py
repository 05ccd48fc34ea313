"""A tiny random model of each family that can be exported, and the same as a whole Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pilotfish.exporters.sources.families import SUPPORTED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "FAMILIES",
    "VOCAB_SIZE",
    "YARN",
    "families_of",
    "random_decoder",
    "save_tiny",
    "save_tiny_model",
    "tiny",
    "tiny_tokenizer",
]

FAMILIES = tuple(SUPPORTED)
VOCAB_SIZE = 300
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # wide enough for logits to depend on what is attended to
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {},
    "mistral": {"sliding_window": 48},
    "ministral3": {
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
    },
    "gemma": {"head_dim": 32},
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attn_logit_softcapping": 2.0,  # low enough to matter
        "final_logit_softcapping": 3.0,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
        "logits_scaling": 4.0,
    },
    "smollm3": {"num_hidden_layers": 5},
    "olmo2": {},
}
_TEXT = (
    "The pilot fish swims ahead of the shark, and the shark follows the pilot fish through the water. "
    "def add(a, b):\n    return a + b\n"
)
_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}<|assistant|>"


def families_of(form: str) -> list[str]:
    """The families that can go to a format."""
    return [family for family, exported in SUPPORTED.items() if form not in exported.not_to]


def tiny(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of this family (a model_type), in f32 and eval mode. changes: other entries of its config."""
    return random_decoder(family, {**_SIZES, **_MORE[family], **changes}, seed)


def random_decoder(model_type: str, config: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """A random decoder of transformers, in f32 and eval mode, whose norms and biases are random, too."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[model_type](**config), attn_implementation="eager"
    ).float()
    for name, values in model.named_parameters():
        if "norm" in name or name.endswith("bias"):  # which a new model has at one and at zero
            values.data += 0.5 * torch.rand_like(values) - 0.25
    for name, values in model.named_buffers():
        if name.endswith("layer_scalar"):  # stored with the weights, and one in a new model
            values.data += 0.5 * torch.rand_like(values) - 0.25
    model.requires_grad_(False)
    model.train(False)
    return model


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE of fewer tokens than the models have rows."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 5, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([_TEXT] * 4, trainer)
    return inner


def save_tiny(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A whole Hugging Face folder of this model: weights, configuration and tokenizer."""
    return save_tiny_model(tiny(family, seed, **changes), folder)


def save_tiny_model(model: PreTrainedModel, folder: Path) -> Path:
    """The same of a model in memory."""
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
