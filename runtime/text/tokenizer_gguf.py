"""The tokenizer inside a GGUF file: its vocabulary and merges, and how it cuts text into words before merging.

Regular expressions are those of the models' own tokenizer.json files; which name stands for which is llama.cpp's
(llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from ..errors import ModelFileError, UnsupportedModelError
from .gguf_vocabulary import CONTROL, NO_MERGE, add_tokens, read_vocabulary, strings
from .line_bpe import bpe, line_bpe
from .sentencepiece_bpe import sentencepiece_bpe
from .sentencepiece_unigram import sentencepiece_unigram
from .special_tokens import FILL_IN_ENDS
from .token_bytes import steps
from .tokenizer import Tokenizer

_FALCON_END = 11  # what llama.cpp takes for both ends of byte-level texts where a file names none; elsewhere a comma
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a text is cut into words: by each expression in turn, matches and what lies between them apart."""

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False  # a word that is in the vocabulary is one token, whatever the merges say
    add_bos: bool = False  # where the file does not say


_GPT2_RULE = _Rule((_GPT2,))
_DIGITS_RULE = _Rule((r"\p{N}", _GPT2))
_LLAMA3_RULE = _Rule((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_RULE = _Rule((_QWEN2,), nfc=True)
_RULES: dict[str, _Rule] = {
    "default": _Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "granite-docling", "trillion"), _GPT2_RULE),
    **dict.fromkeys(("jina-v2-es", "jina-v2-de", "jina-v2-code"), _GPT2_RULE),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_RULE),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2_RULE),
    "megrez": _Rule((_QWEN2,)),
    "stablelm2": _Rule((_QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2", "pixtral"), _LLAMA3_RULE),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Rule((_LLAMA3,))),
    "tekken": _Rule((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _Rule((_GPT4O,))),
    "deepseek-v3": _Rule((r"\p{N}{1,3}", r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+", _DEEPSEEK3)),
}


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Raises UnsupportedModelError for kinds other than byte-level BPE with a known pre-tokenizer, BPE over whole lines
    and SentencePiece's BPE and unigram models, and ModelFileError where vocabulary, types and merges do not fit.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise ModelFileError("the GGUF file holds no tokenizer (tokenizer.ggml.model is missing).")
    if model == "llama" and metadata.get("tokenizer.ggml.pre") == "gemma4" and "tokenizer.ggml.merges" in metadata:
        model = "gemma4"  # as Ollama writes it, with scores that say nothing
    if model == "gpt2":
        inner, add_bos = _byte_level(metadata)
        bos_id, eos_id = (_control(metadata, _FALCON_END),) * 2
    elif model == "llama":
        inner, add_bos = sentencepiece_bpe(metadata), True
        bos_id, eos_id = 1, 2
    elif model == "gemma4":
        inner, add_bos = line_bpe(metadata), True
        bos_id, eos_id = None, None
    elif model == "t5":
        inner, add_bos = sentencepiece_unigram(metadata), False
        bos_id, eos_id = None, 1
    else:
        raise UnsupportedModelError(
            f"the GGUF file's tokenizer is of the kind {model!r}; supported are 'gpt2' (byte-level BPE), 'llama' "
            "(SentencePiece's BPE), 'gemma4' (BPE over lines) and 't5' (SentencePiece's unigram model)."
        )
    n_tokens = inner.get_vocab_size()
    ends = [_id(metadata, "eos", eos_id, n_tokens), *(_id(metadata, kind) for kind in ("eot", "eom", *FILL_IN_ENDS))]
    found = Tokenizer(
        inner,
        bos_id=_id(metadata, "bos", bos_id, n_tokens),
        eos_ids=list(dict.fromkeys(end for end in ends if end is not None)),
        add_bos=model == "gemma4" or bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
    )
    if metadata.get("tokenizer.ggml.add_eos_token", model == "t5") and found.eos_id is not None:
        end = (str(found.token(found.eos_id)), found.eos_id)  # what an encoder reads ends with it
        inner.post_processor = processors.TemplateProcessing(single=["$A", end[0]], special_tokens=[end])
    return found


def pre_tokenizer_name(described: Mapping[str, Any]) -> str | None:
    """The name that GGUF has for the way in which a tokenizer.json cuts a text into words; None for an unknown one."""
    nfc = [step["type"] for step in steps(described["normalizer"], "normalizers")]
    patterns = _patterns(described["pre_tokenizer"])
    if nfc not in ([], ["NFC"]) or patterns is None:
        return None
    ignore_merges = bool(described["model"].get("ignore_merges"))
    for name, rule in _RULES.items():
        if (rule.patterns, rule.nfc, rule.ignore_merges) == (patterns, bool(nfc), ignore_merges):
            return name
    return None


def _patterns(described: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The expressions that a text is cut by; None where it is not by expressions alone."""
    found: list[str] = []
    for step in steps(described, "pretokenizers"):
        kind = step["type"]
        if kind == "ByteLevel" and not step["add_prefix_space"]:
            found += [_GPT2] if step.get("use_regex", True) else []
        elif kind == "Digits":
            found.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif kind == "Split" and step["behavior"] in ("Isolated", "Removed") and "Regex" in step["pattern"]:
            if (step["behavior"] == "Removed") != step["invert"]:  # removing what does not match leaves the matches
                return None
            found.append(step["pattern"]["Regex"])
        else:
            return None
    return tuple(found)


def _byte_level(metadata: Mapping[str, object]) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether such ones begin a text with bos where the file does not say."""
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    rule = _RULES.get(name)
    if rule is None:
        raise UnsupportedModelError(
            f"the GGUF file's pre-tokenizer {name!r} is not known; known are {', '.join(sorted(_RULES))}."
        )
    merges = strings(metadata, "tokenizer.ggml.merges")
    vocabulary = read_vocabulary(metadata, merges)
    real = [merge for merge in merges if merge != NO_MERGE]
    inner = tokenizers.Tokenizer(bpe(vocabulary.ids, real, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = _pre_tokenizer(rule)
    inner.decoder = decoders.ByteLevel()
    add_tokens(inner, vocabulary, metadata)
    return inner, rule.add_bos


def _pre_tokenizer(rule: _Rule) -> pre_tokenizers.PreTokenizer:
    """Cuts by the rule, then writes bytes in the byte alphabet."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _control(metadata: Mapping[str, object], token_id: int) -> int | None:
    """This token, if it is a control token in the file; None otherwise."""
    types = metadata.get("tokenizer.ggml.token_type")
    is_control = isinstance(types, (Sequence, np.ndarray)) and len(types) > token_id and types[token_id] == CONTROL
    return token_id if is_control else None


def _id(metadata: Mapping[str, object], kind: str, default: int | None = None, n_tokens: int = 0) -> int | None:
    """The token of a kind. default: where the file does not say, if there are so many tokens."""
    key = f"tokenizer.ggml.{kind}_token_id"
    value = metadata.get(key)
    if value is None:
        return default if default is not None and default < n_tokens else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelFileError(f"the GGUF file's {key} is {value!r} instead of a token id.")
    return value
