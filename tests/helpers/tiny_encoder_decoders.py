"""A tiny random encoder-decoder of each family that can be exported, by the names that the tests use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_families import VOCAB_SIZE as READ
from tiny_families import tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCAB_SIZE = 120
_TOKENS = {
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_T5 = {
    **_TOKENS,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 40,
    "dropout_rate": 0.0,
}
_BART = {
    **_TOKENS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "forced_eos_token_id": None,
}
_SCALED = {"scale_embedding": True, "init_std": 0.1}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model_type and its configuration
    "t5": ("t5", _T5),
    "flan": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "byt5": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 4}),
    "mt5": (  # smaller weights than by default, whose perplexity says nothing
        "mt5",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "initializer_factor": 0.5},
    ),
    "bart": ("bart", _BART),
    "mbart": ("mbart", {**_BART, **_SCALED}),
    "m2m100": ("m2m_100", {**_BART, **_SCALED, "activation_function": "relu", "decoder_start_token_id": 2}),
    "plbart": ("plbart", {**_BART, **_SCALED}),
    "blenderbot": ("blenderbot", {**_BART, **_SCALED}),
    "blenderbot_small": ("blenderbot-small", {**_BART, **_SCALED}),
    "umt5": ("umt5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "pegasus": ("pegasus", {**_BART, **_SCALED, "activation_function": "relu"}),
    "marian": (
        "marian",
        {**_BART, **_SCALED, "activation_function": "swish"},
    ),
    "whisper": (
        "whisper",
        {
            **{k: v for k, v in _BART.items() if k != "max_position_embeddings"},
            "num_mel_bins": 20,
            "max_source_positions": 60,
            "max_target_positions": 128,
            "begin_suppress_tokens": None,
            "suppress_tokens": None,
        },
    ),
}
ENCODER_DECODERS = tuple(CONFIGS)


def tiny_encoder_decoder(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model, in f32 and eval mode. changes: other entries of its configuration."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    torch.manual_seed(seed)
    family, settings = CONFIGS[name]
    config = CONFIG_MAPPING[family](**{**settings, **changes})
    made: Any = AutoModelForSpeechSeq2Seq if family == "whisper" else AutoModelForSeq2SeqLM
    model: PreTrainedModel = made.from_config(config, attn_implementation="eager").float()
    for part, values in model.named_parameters():
        if "norm" in part or part.endswith("bias"):  # which a new model has at one and at zero
            values.data += 0.5 * torch.rand_like(values) - 0.25
        if part.endswith("relative_attention_bias.weight"):
            values.data = torch.randn_like(values)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias = torch.rand(1, config.vocab_size)
    model.requires_grad_(False)
    model.train(False)
    return model


def save_encoder_decoder(name: str, folder: Path, **changes: Any) -> Path:
    """A whole Hugging Face folder of this model, of a vocabulary that its tokenizer fits."""
    tiny_encoder_decoder(name, vocab_size=READ, **changes).save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
