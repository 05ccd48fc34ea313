"""How tokenizers of many languages say which one a text is in: by a token before it, or behind its end.

Source: transformers, tokenization_nllb.py, tokenization_mbart.py, tokenization_mbart50.py, tokenization_m2m_100.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Framed:
    """The tokens around a text, by their names; none where a tokenizer says that itself."""

    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


_SOURCES: Mapping[str, tuple[str, bool, Callable[[str], str]]] = {  # the language by default, whether it comes first
    "NllbTokenizer": ("eng_Latn", True, str),
    "MBartTokenizer": ("en_XX", False, str),
    "MBart50Tokenizer": ("en_XX", True, str),
    "M2M100Tokenizer": ("en", True, "__{}__".format),
}


def class_of(said: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The class that transformers reads a tokenizer with. said: tokenizer_config.json; settings: config.json."""
    name = said.get("tokenizer_class") or settings.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def named_token(said: Mapping[str, Any], name: str, default: str) -> str:
    """The text of a token that tokenizer_config.json names, such as eos_token."""
    token = said.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else default


def frame_of(kind: str, said: Mapping[str, Any], known: Callable[[str], object]) -> Framed:
    """What stands around a text where a tokenizer of this class reads it; nothing for other classes.

    known: the token of a name, or None. A language that nobody named is left out where there is no token for it.
    """
    if kind not in _SOURCES:
        return Framed()
    default, first, written = _SOURCES[kind]
    told = said.get("src_lang")
    source, end = written(told if isinstance(told, str) else default), named_token(said, "eos_token", "</s>")
    if told is None and known(source) is None:
        return Framed()
    if first and not (kind == "NllbTokenizer" and said.get("legacy_behaviour")):
        return Framed((source,), (end,))
    return Framed((), (end, source))
