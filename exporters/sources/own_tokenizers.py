"""Tokenizers of families that keep other files than a tokenizer.json: SentencePiece models, names of pieces, or none.

Source: transformers, the tokenization_*.py and the converters of the families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ...runtime.errors import ModelFileError, UnsupportedModelError
from ...runtime.files.folder_files import json_object
from ...runtime.text.gguf_vocabulary import NORMAL, UNKNOWN, USER_DEFINED
from ...runtime.text.token_bytes import BYTES
from .language_codes import M2M100, MBART, MBART_50, NLLB
from .sentencepiece_file import SentencePieceModel, read_sentencepiece
from .sentencepiece_tokenizer import Token, named, sentencepiece_tokenizer, special, tokens_of
from .translators import Framed, class_of, frame_of, named_token

Made: TypeAlias = tuple[tokenizers.Tokenizer, Framed]

_BPE_FILE = "sentencepiece.bpe.model"
_BELONG = 0.5  # the least share of a model's pieces that vocab.json of the same model names


def made_of_files(path: Path, settings: Mapping[str, Any], said: Mapping[str, Any]) -> Made:
    """The tokenizer of a folder without a tokenizer.json, and what it puts around a text.

    settings: config.json; said: tokenizer_config.json. Raises UnsupportedModelError where the family has no other
    files that are known, and ModelFileError where they are missing or contradict each other.
    """
    family, kind = str(settings.get("model_type")), class_of(said, settings)
    if kind == "ByT5Tokenizer":
        return _bytes(said), Framed((), (named_token(said, "eos_token", "</s>"),))
    makers = _MAKERS.get(family, {})
    if not makers or (kind and kind not in makers):
        other = f"Its {kind} is not one of those that are known. " if makers else ""
        raise UnsupportedModelError(
            f"{path} has no tokenizer.json. {other}Where transformers' AutoTokenizer can load another tokenizer, its "
            "save_pretrained() writes the file."
        )
    if not kind:
        kind = "M2M100Tokenizer" if family == "m2m_100" and (path / "vocab.json").is_file() else next(iter(makers))
    return makers[kind](path, said)


def _t5(path: Path, said: Mapping[str, Any]) -> Made:
    """The model's pieces, then the sentinels from the last to the first."""
    model = _pieces(path, "spiece.model")
    there = set(model.texts)
    extra = [f"<extra_id_{i}>" for i in reversed(range(_count(path, said, "extra_ids", 100)))]
    tokens = [*tokens_of(model), *special(*(text for text in extra if text not in there))]
    return sentencepiece_tokenizer(model, tokens), Framed((), (named_token(said, "eos_token", "</s>"),))


def _pegasus(path: Path, said: Mapping[str, Any]) -> Made:
    """Special tokens for training first, then the model's pieces without its first two."""
    model = _pieces(path, "spiece.model")
    end = named_token(said, "eos_token", "</s>")
    masks = (named_token(said, "mask_token_sent", "<mask_1>"), named_token(said, "mask_token", "<mask_2>"))
    spare = (f"<unk_{i}>" for i in range(2, _count(path, said, "offset", 103)))
    first = special(named_token(said, "pad_token", "<pad>"), end, *masks, *spare)
    return sentencepiece_tokenizer(model, [*first, *tokens_of(model)[2:]]), Framed((), (end,))


def _fairseq(path: Path, said: Mapping[str, Any], kind: str, languages: Sequence[str]) -> Made:
    """Fairseq's own order: four special tokens, the pieces without the model's three, languages, a mask."""
    model = _pieces(path, _BPE_FILE)
    first = [*special("<s>", "<pad>", "</s>"), Token("<unk>", 0.0, UNKNOWN)]
    tokens = [*first, *tokens_of(model)[3:], *special(*languages, "<mask>")]
    inner = sentencepiece_tokenizer(model, tokens)
    return inner, frame_of(kind, said, inner.token_to_id)


def _mbart(path: Path, said: Mapping[str, Any]) -> Made:
    return _fairseq(path, said, "MBartTokenizer", MBART)


def _mbart50(path: Path, said: Mapping[str, Any]) -> Made:
    return _fairseq(path, said, "MBart50Tokenizer", MBART_50)


def _nllb(path: Path, said: Mapping[str, Any]) -> Made:
    return _fairseq(path, said, "NllbTokenizer", NLLB)


def _m2m100(path: Path, said: Mapping[str, Any]) -> Made:
    codes = said.get("language_codes", "m2m100")
    if codes not in M2M100:
        raise UnsupportedModelError(
            f"{path / 'tokenizer_config.json'} has the language_codes {codes!r}; known are {', '.join(M2M100)}."
        )
    model, names = _pieces(path, _BPE_FILE), _names(path)
    languages = [f"__{code}__" for code in M2M100[codes]]
    specials = frozenset(
        {named_token(said, f"{name}_token", text) for name, text in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"))}
    )
    inner = _of_names(path, said, model, [*names, *languages], specials | set(languages))
    return inner, frame_of("M2M100Tokenizer", said, inner.token_to_id)


def _marian(path: Path, said: Mapping[str, Any]) -> Made:
    if said.get("separate_vocabs") or (path / "target_vocab.json").exists():
        raise UnsupportedModelError(f"{path} has a vocabulary for each of its two languages: not yet.")
    model, names = _pieces(path, "source.spm"), _names(path)
    _require_belonging(path, _pieces(path, "target.spm"), names)
    end = named_token(said, "eos_token", "</s>")
    specials = frozenset({end, named_token(said, "pad_token", "<pad>")})
    return _of_names(path, said, model, names, specials), Framed((), (end,))


def _of_names(
    path: Path, said: Mapping[str, Any], model: SentencePieceModel, names: Sequence[str], specials: frozenset[str]
) -> tokenizers.Tokenizer:
    """The pieces in the order of their names."""
    unknown = named_token(said, "unk_token", "<unk>")
    missing = sorted({unknown, *specials}.difference(names))
    if missing:
        raise ModelFileError(f"{path / 'vocab.json'} does not name {missing[0]}. Fetch or copy it again.")
    _require_belonging(path, model, names)
    chars = frozenset("".join(model.texts))
    strange = next((name for name in names if name not in specials and not chars.intersection(name)), None)
    if model.kind == "bpe" and strange is not None:  # the library does not say which characters it did not know
        raise UnsupportedModelError(
            f"{path / 'vocab.json'} names {strange!r}, which {model.path.name} knows nothing of: not yet, of a bpe."
        )
    return sentencepiece_tokenizer(model, named(model, names, specials, unknown))


def _require_belonging(path: Path, model: SentencePieceModel, names: Sequence[str]) -> None:
    there = frozenset(names)
    cut = [text for text, kind in zip(model.texts, model.types, strict=True) if kind in (NORMAL, USER_DEFINED)]
    n_named = sum(text in there for text in cut)
    if n_named < _BELONG * len(cut):
        raise ModelFileError(
            f"{path / 'vocab.json'} names {n_named} of the {len(cut)} pieces of {model.path.name}: the files do not "
            "belong together. Fetch or copy both again."
        )


def _names(path: Path) -> list[str]:
    """The tokens that vocab.json names, in order. Raises ModelFileError."""
    file = path / "vocab.json"
    if not file.is_file():
        raise _lacks(path, "vocab.json")
    found = json_object(file)
    ids = {i: name for name, i in found.items() if isinstance(i, int) and not isinstance(i, bool)}
    if sorted(ids) != list(range(len(found))):
        raise ModelFileError(f"{file} does not number its {len(found)} tokens from 0 on. Fetch or copy it again.")
    return [ids[i] for i in range(len(ids))]


def _pieces(path: Path, name: str) -> SentencePieceModel:
    if not (path / name).is_file():
        raise _lacks(path, name)
    return read_sentencepiece(path / name)


def _lacks(path: Path, name: str) -> ModelFileError:
    return ModelFileError(
        f"{path} has neither a tokenizer.json nor {name}, which its tokenizer would be made from. Fetch the missing "
        "file."
    )


def _count(path: Path, said: Mapping[str, Any], name: str, default: int) -> int:
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10_000:
        raise ModelFileError(f"{path / 'tokenizer_config.json'}: {name} is {value!r}, but must be a number of tokens.")
    return value


def _bytes(said: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """ByT5's: three special tokens, a token for each byte, and sentinels."""
    names = [named_token(said, f"{name}_token", f"<{text}>") for name, text in _BYT5]
    listed = said.get("additional_special_tokens")
    extra = [one if isinstance(one, str) else one.get("content") for one in listed] if isinstance(listed, list) else ()
    sentinels = [text for text in extra if isinstance(text, str)] or [f"<extra_id_{i}>" for i in range(125)]
    chars = {byte: char for char, byte in BYTES.items()}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={text: i for i, text in enumerate([*names, *(chars[b] for b in range(256))])}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*names, *sentinels)])
    return inner


_BYT5 = (("pad", "pad"), ("eos", "/s"), ("unk", "unk"))
_T5 = {"T5Tokenizer": _t5, "MT5Tokenizer": _t5}
_MAKERS: Mapping[str, Mapping[str, Callable[[Path, Mapping[str, Any]], Made]]] = {  # by family and class
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "pegasus": {"PegasusTokenizer": _pegasus},
    "mbart": {"MBartTokenizer": _mbart, "MBart50Tokenizer": _mbart50},
    "m2m_100": {"NllbTokenizer": _nllb, "M2M100Tokenizer": _m2m100},
    "marian": {"MarianTokenizer": _marian},
}
