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
WINDOWS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 15), (16, 31))  # distances back that a head each begins with its eye on
TYPICAL = "It was on a dreary night of November that I beheld the accomplishment of my toils, and the rain fell there."


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
    """A model that, untrained, tends to emit the source character that follows what it emitted last.

    T5's cross-attention knows no positions, so a small model spends most of a short training on finding where in the
    source it is. Here it begins with that circuit (an induction head; initialising attention as what training would
    find: Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"):
    half of the width holds a character's own embedding, the other half what the first heads gather of the characters
    before it, one head for each of WINDOWS. The decoder's heads look one character less far back, because the token
    that a decoder sees is the one before the token it is to emit. So equal contexts give equal vectors,
    cross-attention starts with equal queries and keys on that half, and hands on the attended character's own half.
    Training may change all of it.
    """
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    width, d_kv, heads = config.d_model, config.d_kv, config.num_heads
    half = width // 2
    if d_kv * heads != width or heads < len(WINDOWS):
        raise ValueError(f"the initialisation wants {len(WINDOWS)} heads or more that fill the width of {width}.")
    with torch.no_grad():
        typical = torch.tensor(encode(TYPICAL))
        embeddings = model.shared.weight.normal_(0, 0.02)
        own = torch.randn(embeddings.shape[0], half)
        own -= own[typical].mean(dim=0)  # else any two windows look alike: full of the commonest letters
        embeddings[:, :half] = own * (13.0 / half**0.5)
        for block in (*model.encoder.block, *model.decoder.block):
            for name, weight in block.named_parameters():
                if weight.dim() == 2 and "relative" not in name:
                    weight.normal_(0, 0.5 * weight.shape[1] ** -0.5)
                    if name.endswith((".o.weight", ".wo.weight")):
                        weight *= 0.3  # near the identity: what layer 0 gathers arrives at the cross-attention
        _gather(model, half)
        for block in model.decoder.block:
            _copy(block.layer[1].EncDecAttention, half, heads)
    return model


def _gather(model: T5ForConditionalGeneration, half: int) -> None:
    """Make the first heads of both first layers write what stands in their window into their part of the width."""
    encoder = model.encoder.block[0].layer[0].SelfAttention
    decoder = model.decoder.block[0].layer[0].SelfAttention
    d_kv = encoder.key_value_proj_dim
    unit = half // 8
    sizes = [unit if last == first else 2 * unit for first, last in WINDOWS]
    reads = [_orthonormal(size, half)[:d_kv] for size in sizes]
    back = -torch.arange(WINDOWS[-1][1] + 1)
    for attention, nearer in ((encoder, 0), (decoder, 1)):
        attention.q.weight *= 0.3
        biases = attention.relative_attention_bias.weight.zero_()
        buckets = attention._relative_position_bucket(back, bidirectional=not attention.is_decoder)
        at = half
        for head, ((first, last), size, read) in enumerate(zip(WINDOWS, sizes, reads, strict=True)):
            rows = slice(head * d_kv, (head + 1) * d_kv)
            attention.v.weight[rows] = 0
            attention.o.weight[:, rows] = 0
            attention.v.weight[rows][: len(read), :half] = read
            gain = 2.5 if first == last else (last - first + 1) ** 0.5  # a mean of n is shorter than one by sqrt(n)
            attention.o.weight[at : at + len(read), rows][:, : len(read)] = gain * torch.eye(len(read))
            biases[buckets[first - nearer : last - nearer + 1], head] = 7.0
            at += size
    right = model.config.relative_attention_num_buckets // 2  # buckets of the characters to come
    for head in range(len(WINDOWS), model.config.num_heads):
        encoder.relative_attention_bias.weight[right + 1 + head - len(WINDOWS), head] = 5.0


def _copy(attention: torch.nn.Module, half: int, heads: int) -> None:
    """Make cross-attention look for its own context in the source, and hand on the character it finds there."""
    d_kv = attention.key_value_proj_dim
    look = 1.3 * torch.cat([_orthonormal(d_kv, half) for _ in range(heads)])
    hand = torch.zeros_like(attention.v.weight)
    share = half // heads  # of a character's own half, that one head carries
    for i in range(half):
        hand[i // share * d_kv + i % share, i] = 1
    for weight in (attention.q.weight, attention.k.weight):
        weight.zero_()[:, half:] = look
    attention.v.weight.copy_(hand)
    attention.o.weight.copy_(10.0 * hand.T)


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
