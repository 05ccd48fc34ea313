"""Vocabularies that are not known here are cut by llama.cpp, and keep what a Tokenizer promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from llamacpp_vocabulary import ask_llama_cpp, write_vocabulary
from tiny_tokenizers import metadata

from pilotfish.backends import get
from pilotfish.runtime.errors import OptionError, UnsupportedModelError
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

BACKEND = get("llamacpp")
pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

TEXTS = (
    "hello hello 12 the théâtre",
    "  two spaces\n\nand lines\t\r\n",
    "日本語 🐟🐠 naïve",
    "<|im_start|>user<|im_end|>",
    "a<tool>b",
    "",
)


FOREIGN: dict[str, dict[str, object]] = {
    "deepseek-coder": metadata(pre="deepseek-coder"),
    "qwen35": metadata(pre="qwen35"),
}


def opened(folder: Path, described: Mapping[str, object]) -> Tokenizer:
    from pilotfish.backends.llamacpp.vocabulary import LlamaCppTokenizer

    return LlamaCppTokenizer(write_vocabulary(folder / "own.gguf", listed(described)))


def listed(described: Mapping[str, object]) -> dict[str, Any]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in described.items()}


@pytest.mark.parametrize("name", FOREIGN)
def test_its_tokens_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        tokenizer_from_gguf(FOREIGN[name])
    found, (said,) = opened(tmp_path, FOREIGN[name]), ask_llama_cpp(tmp_path, [listed(FOREIGN[name])], TEXTS)
    assert [found.encode(text, bos=False).tolist() for text in TEXTS] == said.ids
    assert [found.encode(text, special=True, bos=False).tolist() for text in TEXTS] == said.special_ids
    assert [found.piece(i) for i in range(found.vocab_size)] == said.pieces
    assert found.eos_ids == said.ends and (found.bos_id, found.eos_id) == (said.bos_id, said.eos_id)
    assert found.add_bos == said.add_bos


@pytest.mark.parametrize("name", FOREIGN)
def test_texts_come_back_whole_and_as_a_stream(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, FOREIGN[name])
    for text in TEXTS:
        ids = found.encode(text, bos=False)
        assert found.decode(ids, special=True) == text
        stream = found.stream(special=True)
        pieces = [stream.push([token]) for token in ids]
        assert "".join(pieces) + stream.finish() == text
        assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("name", FOREIGN)
def test_special_tokens_in_a_plain_text_stay_text(name: str, tmp_path: Path) -> None:
    found = opened(tmp_path, FOREIGN[name])
    special = {i for text in found.special_tokens for i in found.special_ids(text)}
    assert special
    for text in found.special_tokens:
        assert special.isdisjoint(found.encode(f"a{text}b", bos=False).tolist())
        (token,) = found.special_ids(text)
        assert token in found.encode(f"a{text}b", special=True, bos=False)
        assert found.piece(token) == b"" and found.piece(token, special=True).decode() == text
        assert (found.token(token), found.id_of(text)) == (text, token)


def test_a_known_vocabulary_is_the_same_by_both(tmp_path: Path) -> None:
    ours, theirs = tokenizer_from_gguf(metadata()), opened(tmp_path, metadata())
    assert theirs.special_tokens == ours.special_tokens and theirs.ordered_eos_ids == ours.ordered_eos_ids
    assert (theirs.bos_id, theirs.add_bos, theirs.vocab_size) == (ours.bos_id, ours.add_bos, ours.vocab_size)
    for text in TEXTS:
        for special in (False, True):
            assert theirs.encode(text, special).tolist() == ours.encode(text, special).tolist()
        assert theirs.encode_source(text).tolist() == ours.encode_source(text).tolist()
    for token in range(ours.vocab_size + 2):
        assert theirs.piece(token) == ours.piece(token) and theirs.token(token) == ours.token(token)
        assert theirs.piece(token, special=True) == ours.piece(token, special=True)


def test_what_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="character 1 is half a surrogate pair"):
        opened(tmp_path, FOREIGN["qwen35"]).encode("a\ud800")


def test_it_cannot_be_written_as_a_file_of_another_kind(tmp_path: Path) -> None:
    found = opened(tmp_path, FOREIGN["qwen35"])
    for use in (lambda: found.save(tmp_path / "t.json"), found.description):
        with pytest.raises(UnsupportedModelError, match=r"only llama\.cpp reads"):
            use()


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="holds no vocabulary"):
        opened(tmp_path, {"tokenizer.ggml.model": "none"})
