"""A tokenizer as GGUF metadata: the way back from runtime/text/tokenizer_gguf.py, which checks what is written here."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...runtime.errors import ChatTemplateError, EngineError, UnsupportedModelError
from ...runtime.text.chat_template import ChatTemplate
from ...runtime.text.gguf_vocabulary import BYTE, CONTROL, NO_MERGE, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from ...runtime.text.special_tokens import END_TEXTS
from ...runtime.text.token_bytes import marked, steps
from ...runtime.text.tokenizer import Tokenizer
from ...runtime.text.tokenizer_gguf import pre_tokenizer_name, tokenizer_from_gguf
from .llama_tokenize import process_environment
from .unigram import unigram_rules

_CHAT = (
    {"role": "user", "content": " Hello,\n world "},
    {"role": "assistant", "content": "It's 2026."},
    {"role": "user", "content": "\n\tWhy?"},
)
_PHI3 = ("</s>", "<unk>", "<s>", "<|endoftext|>")  # llama.cpp, llama-vocab.cpp: by the name of a model
_TEXTS = (  # cut differently by different tokenizers
    "Hello world! It's 2026; we'll see 1234567 things, won't we?\n\n\tdef f(x):\n        return x**2  # ok\r\n",
    "  two  spaces, CamelCaseWords and ALLCAPS, e.g. foo_bar-baz/qux@example.com (see [1]) <|not a token|> ...",
    "Ünïcödé: naïve café, Straße, ČŠŽ; 中文字符測試 日本語のテスト 한국어; русский текст; עברית العربية",
    "हिन्दी 🙂👩‍👩‍👧 ½ ٣٤٥",
)


class Spoken(Protocol):
    """A source, as far as texts and chats go. encoder_decoder: None, unless it is one."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def model_id(self) -> str: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def encoder_decoder(self) -> object | None: ...


def tokenizer_metadata(source: Spoken, vocab_size: int) -> dict[str, object]:
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
        "add_eos_token": source.encoder_decoder is not None and _ends_sources(tokenizer),
        **_rules(described, tokens, types),
    }
    if source.bos_id is not None:
        found["bos_token_id"] = source.bos_id
    metadata = {f"tokenizer.ggml.{name}": value for name, value in (found | _ends(source)).items()}
    name, written = _named(source, metadata)
    _check(tokenizer, written, source.chat_template)
    if source.chat_template is not None:
        metadata["tokenizer.chat_template"] = source.chat_template
    return metadata | {"general.name": name}


def _ends(source: Spoken) -> dict[str, int]:
    """What ends an answer, but for what llama.cpp knows by its text."""
    if not source.eos_ids:
        return {}
    first, *rest = source.eos_ids
    others = [i for i in rest if source.tokenizer.token(i) not in END_TEXTS]
    if len(others) > 2:
        raise UnsupportedModelError(
            f"this model cannot be written as GGUF: {len(others) + 1} tokens end its answers "
            f"({', '.join(str(source.tokenizer.token(i)) for i in (first, *others))}), and the format has room for 3."
        )
    return {"eos_token_id": first, **dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))}


def _ends_sources(tokenizer: Tokenizer) -> bool:
    """Whether what an encoder reads ends with the end-of-text token."""
    return len(tokenizer.encode_source("a")) > len(tokenizer.encode("a", bos=False)) and (
        int(tokenizer.encode_source("a")[-1]) == tokenizer.eos_id
    )


def _named(source: Spoken, metadata: Mapping[str, object]) -> tuple[str, Tokenizer]:
    """The model's name, and the tokenizer that is read under it.

    By the name llama.cpp tells whether special tokens swallow the white space behind them, as those of Phi-3 do, and it
    fails where a model of that name lacks its tokens. So the name says what the tokenizer does.
    """
    names = [source.model_id, re.sub("(?i)(phi)-?3", r"\1 3", source.model_id), f"{source.model_id} (Phi-3 tokens)"]
    if any(source.tokenizer.id_of(token) is None for token in _PHI3):
        names = names[1:2]
    texts = [f"a \n{token} \n a" for token in sorted(source.tokenizer.special_tokens)]
    ours = [source.tokenizer.encode(text, special=True).tolist() for text in texts]
    found: dict[str, tuple[int, Tokenizer]] = {}
    for name in dict.fromkeys(names):
        written = tokenizer_from_gguf({**metadata, "general.name": name})
        alike = sum(written.encode(text, special=True).tolist() == ids for text, ids in zip(texts, ours, strict=True))
        found[name] = alike, written
        if alike == len(texts):
            break
    best = max(found, key=lambda name: found[name][0])
    return best, found[best][1]


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
    """Text and type of every row of the model; rows without a token get a name and are unused.

    Of tokens with the same text all but one are marked: llama.cpp refuses a text that comes twice.
    """
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
        tokens.append(text if kind == UNUSED or tokenizer.id_of(text) == i else marked(text, i))
        types.append(kind)
    return tokens, types


def check_with_llama_cpp(path: Path, ours: Tokenizer, template: str | None = None) -> None:
    """Raise UnsupportedModelError where llama.cpp, if it is installed, cuts a trial text otherwise than we do.

    template: of chats, one of which is a trial text.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return
    trials = _trials(ours, template)
    trials = [(unicodedata.normalize("NFC", text), special) for text, special in trials]  # as llama.cpp never does
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.llama_tokenize", str(path.resolve())],
        input=json.dumps(trials).encode(),
        capture_output=True,
        check=False,
        env=process_environment(),
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EngineError(f"llama.cpp cannot read the tokenizer as written: {said[-1] if said else done.returncode}.")
    for (text, special), found in zip(trials, json.loads(done.stdout), strict=True):
        _compare(ours, text, special, found, "llama.cpp")


def _check(ours: Tokenizer, written: Tokenizer, template: str | None) -> None:
    for text, special in _trials(ours, template):
        _compare(ours, text, special, written.encode(text, special, bos=False).tolist(), "read back, it")


def _compare(ours: Tokenizer, text: str, special: bool, found: list[int], who: str) -> None:
    expected = ours.encode(text, special, bos=False).tolist()
    if expected != found:
        pairs = zip(expected, found, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        where = ours.decode(expected[same : same + 8], special=True)
        raise UnsupportedModelError(f"this tokenizer cannot be written as GGUF: {who} cuts {where!r} otherwise.")


def _trials(tokenizer: Tokenizer, template: str | None) -> list[tuple[str, bool]]:
    """Texts, and whether special tokens in them are meant."""
    step = max(1, tokenizer.vocab_size // 500)
    pieces = [tokenizer.decode([i]) for i in range(0, tokenizer.vocab_size, step)]
    return [(text, False) for text in (*_TEXTS, "".join(pieces), " ".join(pieces))] + _chats(tokenizer, template)


def _chats(tokenizer: Tokenizer, template: str | None) -> list[tuple[str, bool]]:
    """A conversation as the template writes it; none where it takes no such one."""
    if template is None:
        return []
    bos, eos = ("" if i is None else tokenizer.token(i) or "" for i in (tokenizer.bos_id, tokenizer.eos_id))
    try:
        return [(ChatTemplate(template).render(_CHAT, bos_token=bos, eos_token=eos), True)]
    except ChatTemplateError:
        return []
