"""A SentencePiece model as a tokenizer of the tokenizers library, its tokens in the order that a family gives them.

Source: transformers, convert_slow_tokenizer.py; sentencepiece, normalizer.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ...runtime.errors import ModelFileError
from ...runtime.text.gguf_vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from ...runtime.text.piece_names import NAMELESS
from ...runtime.text.sentencepiece_bpe import SPACE, merges_of
from ...runtime.text.token_bytes import marked
from .sentencepiece_file import SentencePieceModel


@dataclass(frozen=True, slots=True)
class Token:
    """A token: a piece of the model's, or one that no text is cut into (type CONTROL, UNKNOWN or UNUSED)."""

    text: str
    score: float
    type: int


def tokens_of(model: SentencePieceModel) -> list[Token]:
    """The pieces as tokens, in the model's own order."""
    return [Token(*one) for one in zip(model.texts, model.scores, model.types, strict=True)]


def special(*texts: str) -> list[Token]:
    """Special tokens that the model has no pieces for."""
    return [Token(text, 0.0, CONTROL) for text in texts]


def named(model: SentencePieceModel, names: Sequence[str], specials: frozenset[str], unknown: str) -> list[Token]:
    """The tokens of a vocabulary that names them, in its order, and behind them the pieces that it does not name."""
    pieces = {one.text: one for one in tokens_of(model) if one.type in (NORMAL, USER_DEFINED)}
    found = []
    for name in names:
        if name == unknown or name in specials:
            found.append(Token(name, 0.0, UNKNOWN if name == unknown else CONTROL))
        else:
            found.append(pieces.get(name, Token(name, 0.0, UNUSED)))
    there = frozenset(names)
    nameless = [one for text, one in pieces.items() if text not in there]
    return [*found, Token(NAMELESS, 0.0, NORMAL), *nameless]


def sentencepiece_tokenizer(model: SentencePieceModel, tokens: Sequence[Token]) -> tokenizers.Tokenizer:
    """The tokenizer that cuts texts as the model does, into these tokens. Raises ModelFileError."""
    texts = [marked(one.text, i) if one.type == UNUSED else one.text for i, one in enumerate(tokens)]
    types = [one.type for one in tokens]
    unknown = types.index(UNKNOWN)
    try:
        inner = tokenizers.Tokenizer(_model(model, texts, tokens, unknown))
        steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    except Exception as error:  # the library raises plain Exception for whatever it cannot use
        raise ModelFileError(f"{model.path} is not a SentencePiece model: {error}. Fetch it again.") from error
    if _by_words(model, steps):
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Metaspace(SPACE, "always")]
        )
    else:
        if model.merged:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if model.prefixed:
            steps.append(normalizers.Prepend(SPACE))
        steps.append(normalizers.Replace(" ", SPACE))
    if steps:
        inner.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(SPACE, " "), *([decoders.ByteFallback()] if model.spells_bytes else []), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if model.prefixed else back)
    kinds = list(zip(texts, types, strict=True))
    inner.add_special_tokens([_added(text, True) for text, kind in kinds if kind in (CONTROL, UNKNOWN)])
    inner.add_tokens([_added(text, False) for text, kind in kinds if kind == USER_DEFINED])
    return inner


def _by_words(model: SentencePieceModel, steps: Sequence[normalizers.Normalizer]) -> bool:
    """Whether words can be cut one by one: no piece goes over the beginning of one, and no text writes it itself."""
    written = steps[0].normalize_str(SPACE) == SPACE if steps else True
    return model.merged and model.prefixed and not written and not any(SPACE in text[1:] for text in model.texts)


def _model(model: SentencePieceModel, texts: Sequence[str], tokens: Sequence[Token], unknown: int) -> models.Model:
    if model.kind == "unigram":
        pieces = [(text, one.score) for text, one in zip(texts, tokens, strict=True)]
        return models.Unigram(pieces, unknown, model.spells_bytes)
    ids = {text: i for i, text in enumerate(texts)}
    scores = np.array([one.score for one in tokens])
    pairs = merges_of(texts, [one.type for one in tokens], scores)
    return models.BPE(
        vocab=ids, merges=pairs, unk_token=texts[unknown], fuse_unk=True, byte_fallback=model.spells_bytes
    )


def _added(text: str, is_special: bool) -> AddedToken:
    return AddedToken(text, special=is_special, normalized=False)
