"""Tokenizers from GGUF metadata beside llama.cpp, on made vocabularies: same ids, pieces, ends and beginnings."""

from __future__ import annotations

import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from pilotfish.runtime.text.special_tokens import END_TEXTS, FILL_IN
from pilotfish.runtime.text.token_bytes import BYTES
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.runtime.text.tokenizer_gguf import _RULES, tokenizer_from_gguf

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from llamacpp_vocabulary import Said, ask_llama_cpp

CHAR = {byte: char for char, byte in BYTES.items()}
CONTROLS, OWN = ("<|user|>", "<|end|>", "<x>"), ("<tool>", "\n\n\n", "@@")  # none begins within another
ALPHABETS = (
    "abchelo ABC 123 ",
    "   \n\t\r ",
    ".,!?'()[]<>|/\\-_*&^%$#@~`+=\";:{}",
    "'s'T're'LL'd'M've",
    "中文字日本ひらカタ한국עברית½٣٤²🙂",
    "éàüßÇÉрусскийΑλφα",
    "\u0301\u0903हिन्दी\u00a0\u3000\u2028",
)
CASED = {"tekken", "gpt-4o", "llama4", "kanana2"}  # llama.cpp knows no case and no marks beyond ASCII for them


def texts(seed: int, n: int, alphabets: tuple[str, ...] = ALPHABETS, special: bool = True) -> list[str]:
    """Random texts in NFC, which llama.cpp does for no model; special: with special tokens in them."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < n:
        some = rng.sample(alphabets, rng.randint(1, len(alphabets)))
        letters = [rng.choice(rng.choice(some)) for _ in range(rng.randint(1, 24))]
        for _ in range(rng.randint(0, 3) if special else 0):
            letters.insert(rng.randrange(len(letters) + 1), rng.choice((*CONTROLS, *OWN)))
        found.append(unicodedata.normalize("NFC", "".join(letters)))
    return found


def byte_level(samples: list[str], **changes: object) -> dict[str, object]:
    """256 bytes, then merges of neighbours in the samples, then control tokens and tokens of the user's own."""
    rng = random.Random(0)
    tokens = [CHAR[byte] for byte in range(256)]
    merges: list[str] = []
    for _ in range(3):
        known, pairs = set(tokens), set()
        for sample in samples:
            word = "".join(CHAR[byte] for byte in sample.encode())
            for _ in range(8):
                at, left, right = rng.randrange(len(word) + 1), rng.randint(1, 4), rng.randint(1, 4)
                pair = word[at : at + left], word[at + left : at + left + right]
                if pair[0] in known and pair[1] in known and "".join(pair) not in known:
                    pairs.add(pair)
        for pair in sorted(pairs):
            if "".join(pair) not in known and "".join(pair) not in OWN:
                known.add("".join(pair))
                tokens.append("".join(pair))
                merges.append(" ".join(pair))
    types = [1] * len(tokens) + [3] * len(CONTROLS) + [4] * len(OWN)
    return named(
        {"model": "gpt2", "tokens": [*tokens, *CONTROLS, *OWN], "token_type": types, "merges": merges}
        | {"bos_token_id": len(tokens), "eos_token_id": len(tokens)}
        | changes
    )


def sentencepiece(samples: list[str], **changes: object) -> dict[str, object]:
    """Pieces of the samples, all with other scores, each made of two others; bytes; tokens of all kinds."""
    rng = random.Random(0)
    pieces = sorted({char for sample in samples for char in sample.replace(" ", "▁") if rng.random() < 0.8})
    for _ in range(3):
        known = set(pieces)
        for sample in samples:
            word = "▁" + sample.replace(" ", "▁")
            at, left, right = rng.randrange(len(word)), rng.randint(1, 4), rng.randint(1, 4)
            pair = word[at : at + left], word[at + left : at + left + right]
            if pair[0] in known and pair[1] in known and "".join(pair) not in known:
                known.add("".join(pair))
                pieces.append("".join(pair))
    pieces = [piece for piece in pieces if piece not in OWN]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *CONTROLS, *OWN]
    scores = list(rng.sample(range(-2 * len(pieces), 0), len(pieces)))
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [3] * len(CONTROLS) + [4] * len(OWN)
    scores = [0.0] * 259 + [float(score) for score in scores] + [0.0] * (len(CONTROLS) + len(OWN))
    return named({"model": "llama", "tokens": tokens, "token_type": types, "scores": scores} | changes)


def lines(samples: list[str], **changes: object) -> dict[str, object]:
    """Letters of the samples, merges of what stands side by side in them, spaces too; bytes; tokens of all kinds."""
    rng = random.Random(0)
    pieces = sorted(
        {char for sample in samples for char in sample.replace(" ", "▁") if rng.random() < 0.8} | {"\n", "\t"}
    )
    merges = ["\t \t"]  # which stands for no merge at all in byte-level vocabularies
    pieces.append("\t\t")
    for _ in range(3):
        known = set(pieces)
        for sample in samples:
            word = rng.choice(sample.replace(" ", "▁").split("\n"))
            at, left, right = rng.randrange(len(word) + 1), rng.randint(1, 4), rng.randint(1, 4)
            pair = word[at : at + left], word[at + left : at + left + right]
            if pair[0] in known and pair[1] in known and "".join(pair) not in {*known, *OWN}:
                known.add("".join(pair))
                pieces.append("".join(pair))
                merges.append(" ".join(pair))
    pieces = [piece for piece in pieces if piece not in OWN]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*pieces, *CONTROLS, *OWN]
    types = [3, 3, 3, 2] + [6] * 256 + [1] * len(pieces) + [3] * len(CONTROLS) + [4] * len(OWN)
    found = {"model": "gemma4", "tokens": tokens, "token_type": types, "merges": merges}
    return named(found | {"scores": [0.0] * len(tokens), "bos_token_id": 2, "eos_token_id": 1} | changes)


def unigram(samples: list[str], **changes: object) -> dict[str, object]:
    """Pieces of the samples with probabilities, and tokens of all kinds, as T5 has them."""
    rng = random.Random(0)
    pieces = sorted({char for sample in samples for char in sample.replace(" ", "▁") if rng.random() < 0.8})
    for sample in samples:
        word = "▁" + sample.replace(" ", "▁")
        at = rng.randrange(len(word))
        pieces.append(word[at : at + rng.randint(2, 5)])
    pieces = [piece for piece in dict.fromkeys(pieces) if not piece.count("▁", 1)]  # none goes beyond a word
    pieces = [piece for piece in pieces if len(set(piece)) == len(piece)]  # so that no two cuts are equally probable
    pieces = [piece for piece in pieces if piece not in OWN]
    tokens = ["<pad>", "</s>", "<unk>", *pieces, *CONTROLS, *OWN]
    types = [3, 3, 2] + [1] * len(pieces) + [3] * len(CONTROLS) + [4] * len(OWN)
    scores = [0.0] * 3 + [float(np.float32(-rng.uniform(1.0, 12.0))) for _ in pieces]
    scores += [0.0] * (len(CONTROLS) + len(OWN))
    return named({"model": "t5", "tokens": tokens, "token_type": types, "scores": scores} | changes)


def named(found: dict[str, object]) -> dict[str, object]:
    return {f"tokenizer.ggml.{name}" if "." not in name else name: value for name, value in found.items()}


def compare(metadata: dict[str, object], said: Said, samples: list[str]) -> Tokenizer:
    tokenizer = tokenizer_from_gguf(metadata)
    for special, theirs in ((False, said.ids), (True, said.special_ids)):
        for text, expected in zip(samples, theirs, strict=True):
            assert tokenizer.encode(text, special, bos=False).tolist() == expected, (text, special)
    assert [tokenizer.piece(i) for i in range(tokenizer.vocab_size)] == said.pieces
    assert (tokenizer.eos_ids, tokenizer.add_bos) == (said.ends, said.add_bos)
    return tokenizer


def test_byte_level_vocabularies(tmp_path: Path) -> None:
    learned = byte_level(texts(1, 400, special=False))
    for names, alphabets in ((sorted(set(_RULES) - CASED), ALPHABETS), (sorted(CASED), ALPHABETS[:5])):
        samples = texts(2, 300, alphabets)
        made = [learned | named({"pre": name}) for name in names]
        for metadata, said in zip(made, ask_llama_cpp(tmp_path, made, samples), strict=True):
            compare(metadata, said, samples)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies(prefix: bool, tmp_path: Path) -> None:
    samples = texts(3, 300)
    metadata = sentencepiece(texts(4, 400, special=False), add_space_prefix=prefix)
    (said,) = ask_llama_cpp(tmp_path, [metadata], samples)
    compare(metadata, said, samples)


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_line_vocabularies(add_bos: bool | None, tmp_path: Path) -> None:
    samples = [re.sub("\n+", "\n", text) for text in texts(7, 300)]
    changes = {} if add_bos is None else {"add_bos_token": add_bos}
    metadata = lines(texts(8, 400, special=False), **changes)
    (said,) = ask_llama_cpp(tmp_path, [metadata], samples)
    tokenizer = compare(metadata, said, samples)
    assert [tokenizer.decode(tokenizer.encode(text, True, bos=False), special=True) for text in samples] == samples


def test_line_vocabularies_as_ollama_writes_them() -> None:
    """Under another name, with scores that count the tokens, and with bytes and the unknown of other kinds."""
    samples, made = texts(9, 200), lines(texts(8, 400, special=False))
    types = [{6: 1, 2: 3}.get(kind, kind) for kind in made["tokenizer.ggml.token_type"]]  # type: ignore[attr-defined]
    named_so = {"model": "llama", "pre": "gemma4", "token_type": types, "scores": [float(i) for i in range(len(types))]}
    ours, theirs = (tokenizer_from_gguf(metadata) for metadata in (made | named(named_so), made))
    for text in samples:
        for special in (False, True):
            assert ours.encode(text, special).tolist() == theirs.encode(text, special).tolist()
        assert ours.decode(ours.encode(text, True, bos=False), special=True) == text
    assert (ours.add_bos, ours.bos_id, ours.eos_ids) == (theirs.add_bos, theirs.bos_id, theirs.eos_ids)


@pytest.mark.parametrize("prefix", [True, False, None])
@pytest.mark.parametrize("merged", [True, False])
def test_unigram_vocabularies(prefix: bool | None, merged: bool, tmp_path: Path) -> None:
    samples = texts(5, 300)
    metadata = unigram(texts(6, 300, special=False), add_space_prefix=prefix, remove_extra_whitespaces=merged)
    (said,) = ask_llama_cpp(tmp_path, [metadata], samples)
    compare(metadata, said, samples)


def small(kind: str, more: dict[str, int], **changes: object) -> dict[str, object]:
    """A vocabulary of single letters and these tokens: by their text, their kinds."""
    letters = ["▁", *"abcdefgh"] if kind != "gpt2" else [CHAR[byte] for byte in range(256)]
    first = {"gpt2": [], "llama": ["<unk>", "<s>", "<z>"], "t5": ["<pad>", "<z>", "<unk>"]}[kind]
    octets = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "llama" else []
    tokens = [*first, *octets, *letters, *more]
    kinds = {"<unk>": 2, "<s>": 3, "<z>": 3, "<pad>": 3, **more, **dict.fromkeys(octets, 6)}
    found: dict[str, object] = {"model": kind, "tokens": tokens, "token_type": [kinds.get(text, 1) for text in tokens]}
    found |= {"merges": ["a b"]} if kind == "gpt2" else {"scores": [-1.0 - i for i in range(len(tokens))]}
    if kind == "gpt2":
        tokens.append("ab")
        found["token_type"] = [kinds.get(text, 1) for text in tokens]
    return named(found | changes)


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_answers_end_at_known_texts_of_every_type(model: str, kind: int, tmp_path: Path) -> None:
    known = sorted(END_TEXTS.union(*FILL_IN.values()) | {"<|eot|>", "<|plamo:eos|>"})
    vocabularies = [small(model, {text: kind}, eos_token_id=0, bos_token_id=0) for text in known]
    # Its unigram tokenizer takes the kinds from before it mends them, so that a text can write such a token.
    samples = [] if model == "t5" and kind != 3 else ["a<|im_end|>b", "".join(sorted(END_TEXTS))]
    for metadata, said in zip(vocabularies, ask_llama_cpp(tmp_path, vocabularies, samples), strict=True):
        compare(metadata, said, samples)


@pytest.mark.parametrize(
    "texts",
    [
        ("<|end|>", "<|return|>", "<|call|>"),
        ("<|end|>", "<|flush|>", "<|calls|>"),
        ("<|end|>", "<|flush|>", "<|call|>"),
        ("<|end|>", "<|return|>"),
        ("<|end|>", "<|call|>"),
        ("</s>", "<|tool_response>"),
        ("</s>", "<|plamo:eos|>"),
    ],
)
def test_texts_that_end_only_a_part_of_an_answer_beside_others(texts: tuple[str, ...], tmp_path: Path) -> None:
    vocabularies = [
        small("gpt2", dict.fromkeys(texts, 3), eos_token_id=i, bos_token_id=0) for i in (0, 255 + len(texts))
    ]
    for metadata, said in zip(vocabularies, ask_llama_cpp(tmp_path, vocabularies, []), strict=True):
        assert tokenizer_from_gguf(metadata).eos_ids == said.ends


def test_answers_end_where_the_file_says(tmp_path: Path) -> None:
    keys = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep", "fim_pre")
    named_ends = [{"bos_token_id": 0, "eos_token_id": 0, f"{key}_token_id": 256} for key in keys]
    vocabularies = [small("gpt2", {"<1>": 3, "<|fim_pad|>": 4, "<|fim_prefix|>": 1}, **ids) for ids in named_ends[:3]]
    vocabularies += [small("gpt2", {"<1>": 3, "<|im_end|>": 4}, **ids) for ids in named_ends[3:]]
    for metadata, said in zip(vocabularies, ask_llama_cpp(tmp_path, vocabularies, ["a<1>b"]), strict=True):
        compare(metadata, said, ["a<1>b"])


def test_beginnings_and_ends_that_a_file_does_not_name(tmp_path: Path) -> None:
    made = [small("llama", {}), small("t5", {}), small("llama", {}, add_bos_token=False, add_eos_token=True)]
    made += [small("t5", {}, add_eos_token=False)]
    for metadata, said in zip(made, ask_llama_cpp(tmp_path, made, ["a"]), strict=True):
        tokenizer = tokenizer_from_gguf(metadata)
        assert (tokenizer.add_bos, tokenizer.eos_id, tokenizer.eos_ids) == (said.add_bos, said.eos_id, said.ends)
        assert tokenizer.bos_id == (said.bos_id if said.bos_id >= 0 else None)
        assert (tokenizer.encode_source("a")[-1] == tokenizer.eos_id) == said.add_eos


@pytest.mark.parametrize(
    "about",
    [
        {"general.name": "Phi-3 mini"},
        {"general.name": "my phi3"},
        {"general.name": "Phi 4"},
        {"general.name": "Modern-BERT base"},
        {"general.architecture": "nomic-bert-moe"},
        {"tokenizer.ggml.pre": "jina-v2-es"},
    ],
)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_white_space_that_special_tokens_swallow(model: str, about: dict[str, object], tmp_path: Path) -> None:
    more = {"</s>": 3, "<|endoftext|>": 3, "<|user|>": 3, "<mask>": 3, "[MASK]": 3, "<own>": 4}
    more |= {"<unk>": 3, "<s>": 3} if model == "gpt2" else {}
    around = [f"a \n{token} \n\t b" for token in (*more, "<unk>", "<s>")]
    samples = [*around, "".join(around), "<|user|> \n<|user|>  \n", "  <own>  <mask>  [MASK]"]
    metadata = small(model, more, eos_token_id=0, bos_token_id=0) | about
    (said,) = ask_llama_cpp(tmp_path, [metadata], samples)
    compare(metadata, said, samples)
