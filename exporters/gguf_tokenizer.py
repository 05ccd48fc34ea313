"""A tokenizer as GGUF metadata: the way back from runtime/tokenizer_gguf.py, which checks what is written here."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..runtime.decoding import steps
from ..runtime.errors import EngineError, UnsupportedModelError
from ..runtime.gguf_vocabulary import BYTE, CONTROL, NO_MERGE, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from ..runtime.tokenizer import Tokenizer
from ..runtime.tokenizer_gguf import pre_tokenizer_name, tokenizer_from_gguf
from .gguf_unigram import unigram_rules
from .llama_tokenize import process_environment
from .model_source import ModelSource

_PHI3 = ("</s>", "<unk>", "<s>", "<|endoftext|>")  # llama.cpp, llama-vocab.cpp: by the name of a model
_TEXTS = (  # cut differently by different tokenizers
    "Hello world! It's 2026; we'll see 1234567 things, won't we?\n\n\tdef f(x):\n        return x**2  # ok\r\n",
    "  two  spaces, CamelCaseWords and ALLCAPS, e.g. foo_bar-baz/qux@example.com (see [1]) <|not a token|> ...",
    "Ünïcödé: naïve café, Straße, ČŠŽ; 中文字符測試 日本語のテスト 한국어; русский текст; עברית العربية",
    "हिन्दी 🙂👩‍👩‍👧 ½ ٣٤٥",
)


def tokenizer_metadata(source: ModelSource, vocab_size: int) -> dict[str, object]:
    """Metadata of the source's tokenizer and chat template, for a model with vocab_size rows of logits.

    It is read back and must cut every trial text as the source does; UnsupportedModelError where it does not.
    """
    tokenizer = source.tokenizer
    if tokenizer.vocab_size > vocab_size:
        raise UnsupportedModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model only {vocab_size} rows of logits."
        )
    described = tokenizer.description()
    tokens, types = _vocabulary(tokenizer, described, vocab_size)
    found: dict[str, object] = {
        "tokens": tokens,
        "token_type": types,
        "add_bos_token": source.add_bos,
        "add_eos_token": source.pair is not None and _ends_sources(tokenizer),
        **_rules(described, tokens, types),
    }
    if source.bos_id is not None:
        found["bos_token_id"] = source.bos_id
    if source.eos_ids:
        found["eos_token_id"] = source.eos_ids[0]
    if len(source.eos_ids) > 1:
        found["eot_token_id"] = source.eos_ids[1]
    metadata = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    _check(tokenizer, tokenizer_from_gguf(metadata))
    if source.chat_template is not None:
        metadata["tokenizer.chat_template"] = source.chat_template
    return metadata | {"general.name": _name(source)}


def _ends_sources(tokenizer: Tokenizer) -> bool:
    """Whether what an encoder reads ends with the end-of-text token."""
    return len(tokenizer.encode_source("a")) > len(tokenizer.encode("a", bos=False)) and (
        int(tokenizer.encode_source("a")[-1]) == tokenizer.eos_id
    )


def _name(source: ModelSource) -> str:
    """The model's name, but for one that llama.cpp takes for Phi-3's and then fails without that one's tokens."""
    if all(source.tokenizer.id_of(token) is not None for token in _PHI3):
        return source.model_id
    return re.sub("(?i)(phi)-?3", r"\1 3", source.model_id)


def _rules(described: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, object]:
    """How a text is cut into tokens: byte-level merges, or SentencePiece's scores; then `types` are made complete."""
    model: Mapping[str, Any] = described["model"]
    if model["type"] == "Unigram":
        return unigram_rules(described, types)
    if model["type"] != "BPE":
        raise UnsupportedModelError(
            f"a tokenizer of the kind {model['type']} cannot be written as GGUF yet; BPE and Unigram can."
        )
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if [step["type"] for step in steps(described["decoder"], "decoders")] == ["ByteLevel"]:
        name = pre_tokenizer_name(described)
        if not merges and not described["normalizer"]:
            name = name or "gpt-2"  # where every byte is a token, words do not matter
        if name is None:
            raise UnsupportedModelError(
                "this tokenizer cannot be written as GGUF: llama.cpp has no name for how it cuts texts into words "
                f"({described['pre_tokenizer']!s:.200})."
            )
        return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in merges] or [NO_MERGE]}
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    for i, token in enumerate(tokens):
        if token == model.get("unk_token"):
            types[i] = UNKNOWN
        elif types[i] == NORMAL and model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i] = BYTE
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": _begins_with_space(described)}


def _begins_with_space(described: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    before = [step["type"] for step in steps(described["normalizer"], "normalizers")]
    cutting = steps(described["pre_tokenizer"], "pretokenizers")
    return "Prepend" in before or any(step.get("prepend_scheme", "never") != "never" for step in cutting)


def _vocabulary(tokenizer: Tokenizer, described: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of every row of the model; rows without a token get a name and are unused."""
    added = {token["id"]: token for token in described["added_tokens"]}
    tokens, types = [], []
    for i in range(vocab_size):
        text = tokenizer.token(i)
        if text is None:
            text, kind = f"[PAD{i}]", UNUSED
        elif i in added:
            kind = CONTROL if added[i]["special"] else USER_DEFINED
        else:
            kind = NORMAL
        tokens.append(text)
        types.append(kind)
    return tokens, types


def check_with_llama_cpp(path: Path, ours: Tokenizer) -> None:
    """Raise UnsupportedModelError where llama.cpp, if it is installed, cuts a trial text otherwise than we do."""
    if importlib.util.find_spec("llama_cpp") is None:
        return
    texts = [unicodedata.normalize("NFC", text) for text in _trial_texts(ours)]  # which llama.cpp does for no model
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.llama_tokenize", str(path.resolve())],
        input=json.dumps(texts).encode(),
        capture_output=True,
        check=False,
        env=process_environment(),
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EngineError(f"llama.cpp cannot read the tokenizer as written: {said[-1] if said else done.returncode}.")
    for text, found in zip(texts, json.loads(done.stdout), strict=True):
        _compare(ours, text, found, "llama.cpp")


def _check(ours: Tokenizer, written: Tokenizer) -> None:
    for text in _trial_texts(ours):
        _compare(ours, text, written.encode(text, bos=False).tolist(), "read back, it")


def _compare(ours: Tokenizer, text: str, found: list[int], who: str) -> None:
    expected = ours.encode(text, bos=False).tolist()
    if expected != found:
        pairs = zip(expected, found, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        where = ours.decode(expected[same : same + 8])
        raise UnsupportedModelError(f"this tokenizer cannot be written as GGUF: {who} cuts {where!r} otherwise.")


def _trial_texts(tokenizer: Tokenizer) -> Iterator[str]:
    yield from _TEXTS
    step = max(1, tokenizer.vocab_size // 500)
    pieces = [tokenizer.decode([i]) for i in range(0, tokenizer.vocab_size, step)]
    yield "".join(pieces)
    yield " ".join(pieces)
