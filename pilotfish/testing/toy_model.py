"""A whole Model over the toy engine: bytes as tokens, nothing to load. For tests and documentation."""

from __future__ import annotations

from typing import Any

import tokenizers

from ..runtime.interfaces import DraftLengthPolicy, EncoderInfo
from ..runtime.model.model import Model
from ..runtime.profiling.calibrate import calibrate
from ..runtime.speculation.draft_length import RenewalReward
from ..runtime.text.token_bytes import BYTES
from ..runtime.text.tokenizer import Tokenizer
from .toy import ToyWeights

START, END, N_TOKENS = 256, 257, 258  # ids behind those of the bytes; size of the vocabulary


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose ids are the bytes of a text; a text that is read ends with </s>."""
    vocab = {**BYTES, "<s>": START, "</s>": END}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    inner.add_special_tokens(["<s>", "</s>"])
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return Tokenizer(inner, eos_ids=(END,))


def toy_weights(copying: float = 20.0, source_limit: int | None = 512, **options: Any) -> ToyWeights:
    """An encoder-decoder model over bytes that copies what it reads; options: of ToyWeights."""
    encoder = EncoderInfo(decoder_start=(START,), source_limit=source_limit)
    settings = {"vocab_size": N_TOKENS, "context_length": 1024, "encoder": encoder, "copying": copying}
    return ToyWeights(**{**settings, **options})


def toy_model(
    weights: ToyWeights, policy: DraftLengthPolicy | None = None, *, plain: bool = False, **options: Any
) -> Model:
    """A model over such weights. policy: None is the default one; plain: no drafts. options: of Model."""
    session = weights.session(64)
    measured = calibrate(session)
    session.close()
    chosen = None if plain else (policy or RenewalReward())
    return Model(weights, byte_tokenizer(), None, measured, policy=chosen, **options)
