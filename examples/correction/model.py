"""The model: a byte-level T5, its tokenizer, and an initialisation under which it can copy before it is trained."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration

PAD, EOS, UNKNOWN = 0, 1, 2
FIRST_BYTE = 3  # token of byte b is FIRST_BYTE + b, as in ByT5
SPECIAL = ("<pad>", "</s>", "<unk>")
VOCABULARY = 320  # 259 used; rounded up to a multiple of 64 for the matrix kernels
LEFT = 4  # attention heads that begin with their eye on the previous characters


def encode(text: str) -> list[int]:
    """The tokens of a text, its end token last; what `tokenizer()` gives, without the library."""
    return [FIRST_BYTE + byte for byte in text.encode()] + [EOS]


def decode(tokens: list[int]) -> str:
    """The text of tokens up to the first end token; half a character becomes U+FFFD."""
    if EOS in tokens:
        tokens = tokens[: tokens.index(EOS)]
    return bytes(t - FIRST_BYTE for t in tokens if FIRST_BYTE <= t < FIRST_BYTE + 256).decode(errors="replace")


def tokenizer() -> Tokenizer:
    """One token per byte, then </s>: a byte-level BPE without merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {text: i for i, text in enumerate(SPECIAL)}
    vocabulary |= {character: FIRST_BYTE + byte for byte, character in bytes_to_unicode().items()}
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[UNKNOWN]))
    result.add_special_tokens(list(SPECIAL))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    result.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[(SPECIAL[EOS], EOS)])
    return result


def configuration(d_model: int = 256, d_ff: int = 512, encoder: int = 4, decoder: int = 1, heads: int = 8) -> T5Config:
    """A T5 1.1 (gated GELU) with tied embeddings: a deep encoder that reads, a shallow decoder that mostly copies."""
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=d_model,
        d_kv=d_model // heads,
        d_ff=d_ff,
        num_layers=encoder,
        num_decoder_layers=decoder,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        tie_word_embeddings=True,
    )


def new_model(config: T5Config, seed: int) -> T5ForConditionalGeneration:
    """A model that, untrained, tends to emit the source character that follows the last few it emitted.

    T5's cross-attention knows no positions, so a small model spends most of a short training on finding where in the
    source it is. Here it begins with that circuit (an induction head; initialising attention as what training would
    find: Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"):
    half of the width holds a character's own embedding, the other half what the first LEFT heads copy there from the
    characters before it: of the encoder's heads, head h looks h + 1 characters back; of the decoder's, h back, where
    the token it sees is the one before the token it is to emit. So equal contexts give equal vectors, cross-attention
    starts with equal queries and keys on that half, and hands on the attended character's own half.
    Training may change all of it.
    """
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    width, d_kv, heads = config.d_model, config.d_kv, config.num_heads
    half = width // 2
    if d_kv * heads != width or half != d_kv * LEFT:
        raise ValueError(f"the initialisation wants {2 * LEFT} heads that fill the width; it got {heads} of {d_kv}.")
    context = slice(half, width)
    with torch.no_grad():
        model.shared.weight.normal_(0, 2**0.5)
        model.shared.weight[:, context] *= 0.02
        encoder, decoder = model.encoder.block, model.decoder.block
        for block in (*encoder, *decoder):
            for layer in block.layer:
                for name, weight in layer.named_parameters():
                    if weight.dim() == 2 and "relative" not in name:
                        weight.normal_(0, 0.5 * weight.shape[1] ** -0.5)
                        if name.endswith((".o.weight", "wo.weight")):
                            weight *= 0.5  # near the identity: what layer 0 gathers arrives at the cross-attention
        read = _orthonormal(LEFT * d_kv, half)
        write = torch.zeros(width, LEFT * d_kv)
        write[context] = _orthonormal(half, LEFT * d_kv)
        for block in (encoder[0], decoder[0]):
            attention = block.layer[0].SelfAttention
            attention.v.weight[: LEFT * d_kv] = 0
            attention.v.weight[: LEFT * d_kv, :half] = read
            attention.o.weight[:, : LEFT * d_kv] = write
            attention.relative_attention_bias.weight.zero_()
            attention.q.weight *= 0.3
        for head in range(LEFT):
            encoder[0].layer[0].SelfAttention.relative_attention_bias.weight[head + 1, head] = 7.0
            decoder[0].layer[0].SelfAttention.relative_attention_bias.weight[head, head] = 7.0
        right = config.relative_attention_num_buckets // 2  # buckets of the characters to come
        for distance, head in ((1, LEFT), (2, LEFT + 1)):
            encoder[0].layer[0].SelfAttention.relative_attention_bias.weight[right + distance, head] = 5.0
        for block in decoder:
            attention = block.layer[1].EncDecAttention
            match = torch.cat([_orthonormal(d_kv, half) for _ in range(heads)])
            attention.q.weight.zero_()
            attention.k.weight.zero_()
            attention.q.weight[:, context] = 0.8 * match
            attention.k.weight[:, context] = 0.8 * match
            own = torch.zeros(width, width)
            own[:half, :half] = torch.eye(half)
            attention.v.weight.copy_(own)
            attention.o.weight.copy_(2.0 * own.T)
    return model


def save(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Write a folder that transformers, and `pilotfish export`, read."""
    model.generation_config.max_length = None
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": SPECIAL[EOS],
                "pad_token": SPECIAL[PAD],
                "unk_token": SPECIAL[UNKNOWN],
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        )
        + "\n",
        "utf-8",
    )


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.nn.init.orthogonal_(torch.empty(rows, columns))
