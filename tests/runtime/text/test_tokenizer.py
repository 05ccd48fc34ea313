"""Tokenizers made from GGUF metadata, and streamed text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_weights import smollm2
from tiny_tokenizers import END, START, TOKENIZER, TOOL, doubled, metadata

from pilotfish.runtime.errors import (
    CacheWriteError,
    ModelFileError,
    ModelNotFoundError,
    OptionError,
    UnsupportedModelError,
)
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf


def words(text: str, pre: str, **options: bool) -> list[str]:
    tokenizer = tokenizer_from_gguf(metadata(pre=pre))
    return [tokenizer.decode([i]) for i in tokenizer.encode(text, **options)]


def test_ids_and_sizes() -> None:
    assert TOKENIZER.vocab_size == 268
    assert (TOKENIZER.bos_id, TOKENIZER.eos_ids, TOKENIZER.add_bos) == (START, {END}, False)
    assert (TOKENIZER.eos_id, TOKENIZER.ordered_eos_ids) == (END, (END,))
    assert TOKENIZER.token(END) == "<|im_end|>"
    assert TOKENIZER.token(9999) is None
    assert TOKENIZER.special_tokens == {"<|im_start|>", "<|im_end|>"}
    assert TOKENIZER.encode("").tolist() == []
    assert TOKENIZER.encode("a").dtype == np.int64


def test_merges_apply_in_their_order() -> None:
    assert words("hello  hello12", "gpt-2") == ["hello", " ", " hello", "12"]
    assert words("é", "gpt-2") == ["é"]


def test_pre_tokenizers_cut_differently() -> None:
    assert words("12", "gpt-2") == ["12"]
    assert words("12", "smollm") == ["1", "2"]
    assert words("12", "qwen2") == ["1", "2"]
    assert words("12", "llama-bpe", bos=False) == ["12"]
    assert words("(hello", "gpt-2") == words("(hello", "smollm") == ["(", "hello"]
    assert len(words("(hello", "qwen2")) == 2  # "(hello" is one word there, but no merge joins the two
    assert words("\n  hello", "gpt-2") == ["\n", " ", " hello"]


def test_qwen2_composes_characters() -> None:
    assert words("e\u0301", "qwen2") == ["é"]
    assert len(words("e\u0301", "gpt-2")) == 3


def test_llama3_keeps_a_word_of_the_vocabulary_whole() -> None:
    tokens = [*metadata()["tokenizer.ggml.tokens"], "xyz"]  # type: ignore[misc]
    for pre, expected in (("llama-bpe", ["xyz"]), ("gpt-2", ["x", "y", "z"])):
        tokenizer = tokenizer_from_gguf(metadata(pre=pre, tokens=tokens, token_type=None))
        assert [tokenizer.decode([i]) for i in tokenizer.encode("xyz", bos=False)] == expected


def test_bos_comes_first_where_the_model_wants_it() -> None:
    tokenizer = tokenizer_from_gguf(metadata(add_bos_token=True))
    assert tokenizer.encode("a").tolist() == [START, ord("a")]
    assert tokenizer.encode("a", bos=False).tolist() == [ord("a")]
    assert tokenizer_from_gguf(metadata(pre="llama-bpe")).add_bos
    assert not tokenizer_from_gguf(metadata(pre="llama-bpe", add_bos_token=False)).add_bos
    assert not tokenizer_from_gguf(metadata(add_bos_token=True, bos_token_id=None)).add_bos


def test_special_tokens_are_text_unless_asked_for() -> None:
    text = "<|im_start|>hello<|im_end|>"
    assert TOKENIZER.encode(text, special=True).tolist() == [START, *TOKENIZER.encode("hello"), END]
    plain = TOKENIZER.encode(text)
    assert not {START, END} & set(plain.tolist())
    assert TOKENIZER.decode(plain) == text
    assert TOKENIZER.encode("<tool>").tolist() == [TOOL]  # of the user's kind: always itself


def test_decode_leaves_special_tokens_out_unless_asked_for() -> None:
    ids = [START, *TOKENIZER.encode("hello"), TOOL, END, 999_999]
    assert TOKENIZER.decode(ids) == "hello<tool>"
    assert TOKENIZER.decode(ids, special=True) == "<|im_start|>hello<tool><|im_end|>"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(OptionError, match="character 2"):
        TOKENIZER.encode("ab\ud800")


def test_saved_and_read_it_is_the_same(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_gguf(metadata(pre="qwen2"))
    tokenizer.save(tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    again = Tokenizer.from_file(
        tmp_path / "tokenizer.json",
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.ordered_eos_ids,
        add_bos=tokenizer.add_bos,
    )
    for text in ("hello  e\u0301 12 (é) <tool>\n\n x", "<|im_start|>user<|im_end|>"):
        for special in (False, True):
            assert again.encode(text, special).tolist() == tokenizer.encode(text, special).tolist()
    assert (again.vocab_size, again.bos_id, again.eos_ids) == (tokenizer.vocab_size, START, {END})
    with pytest.raises(CacheWriteError):
        tokenizer.save(tmp_path / "missing" / "tokenizer.json")


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    for content in (b"", b"{}", b"\xff\xff", b'{"version": "1.0", "model": {"type": "Nothing"}}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
            Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, ModelFileError, "holds no tokenizer"),
        ({"model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"model": "llama"}, ModelFileError, "scores do not fit"),
        ({"pre": "klingon"}, UnsupportedModelError, "'klingon'.*qwen2"),
        ({"tokens": None}, ModelFileError, "tokens is missing"),
        ({"tokens": [1, 2]}, ModelFileError, "does not hold texts"),
        ({"merges": ["he"]}, ModelFileError, "'he' is not two tokens"),
        ({"merges": ["h z"]}, ModelFileError, "do not fit together"),
        ({"token_type": np.ones(3, dtype=np.int32)}, ModelFileError, "token_type does not fit"),
        ({"eos_token_id": 268}, ModelFileError, "268"),
        ({"eos_token_id": -1}, ModelFileError, "-1"),
        ({"eos_token_id": "2"}, ModelFileError, "'2'"),
    ],
)
def test_metadata_that_does_not_fit(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tokenizer_from_gguf(metadata(**changes))


@given(st.lists(st.integers(0, 270), max_size=60), st.data())
def test_streamed_pieces_are_the_decoded_whole(ids: list[int], data: st.DataObject) -> None:
    stream = TOKENIZER.stream()
    pieces = []
    at = 0
    while at < len(ids):
        n = data.draw(st.integers(1, 4))
        pieces.append(stream.push(ids[at : at + n]))
        at += n
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(ids)


@given(st.text())
def test_text_comes_back_and_is_never_shown_broken(text: str) -> None:
    stream = TOKENIZER.stream()
    pieces = [stream.push([int(i)]) for i in TOKENIZER.encode(text)]
    assert stream.finish() == ""
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_an_emoji_over_several_tokens() -> None:
    ids = TOKENIZER.encode("🙂!")
    stream = TOKENIZER.stream()
    assert [stream.push([i]) for i in ids] == ["", "", "", "🙂", "!"]
    cut = TOKENIZER.stream()
    assert cut.push(ids[:3]) == ""
    assert cut.finish() == "\ufffd" == TOKENIZER.decode(ids[:3])


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
def test_a_text_that_comes_twice_keeps_both_its_tokens(model: str, tmp_path: Path) -> None:
    made = tokenizer_from_gguf(doubled(model))
    first = 0 if model == "gpt2" else 3
    made.save(tmp_path / "tokenizer.json")
    for tokenizer in (made, Tokenizer.from_file(tmp_path / "tokenizer.json", eos_ids=made.ordered_eos_ids)):
        early, late, control, empty = (first + i for i in (6, 8, 9, 11))
        assert tokenizer.decode([early, late]) == "hellohello"
        assert tokenizer.encode("hello").tolist() == [late]
        assert tokenizer.encode("x<z>", special=True).tolist()[-1] == control + 1
        assert tokenizer.decode([control, control + 1]) == ""
        assert tokenizer.decode([control, control + 1], special=True) == "<z><z>"
        assert tokenizer.token(early) == tokenizer.token(late) == "hello" and tokenizer.id_of("hello") == late
        assert tokenizer.token(empty) == f"[EMPTY_{empty}]"
        assert {control} <= tokenizer.eos_ids


def test_a_token_that_is_not_in_use_says_nothing() -> None:
    assert TOKENIZER.decode([267, ord("a")], special=True) == "a"
    assert (TOKENIZER.token(267), TOKENIZER.id_of("<spare>"), TOKENIZER.vocab_size) == (None, None, 268)
    in_merges = tokenizer_from_gguf(metadata(token_type=[1] * 257 + [5] + [1] * 6 + [3, 3, 4, 5]))
    assert [in_merges.decode([i]) for i in in_merges.encode("hello")] == ["hello"]


def test_a_turn_ends_where_a_known_text_says_so_whatever_its_type() -> None:
    for kind in (1, 3, 4):
        types = [1] * 264 + [3, kind, 4, 5]
        tokenizer = tokenizer_from_gguf(metadata(token_type=types, eos_token_id=START))
        assert tokenizer.eos_ids == {START, END}
        assert tokenizer.decode([END]) == "" and END not in tokenizer.encode("<|im_end|>")
        assert tokenizer.encode("<|im_end|>", special=True).tolist() == [END]


@pytest.mark.real
def test_real_tokens_of_smollm2() -> None:
    tokenizer = tokenizer_from_gguf(read_gguf(smollm2()).metadata)
    expected = {  # ids of llama.cpp and of the model's own tokenizer.json
        "Hello, we can use": [19556, 28, 392, 416, 722],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
    }
    assert {text: tokenizer.encode(text).tolist() for text in expected} == expected
    assert tokenizer.eos_ids == {0, 2, 4}  # llama.cpp ends an answer at <reponame>, too
