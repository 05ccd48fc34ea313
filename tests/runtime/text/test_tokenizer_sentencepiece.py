"""Tokenizers in the manner of SentencePiece: spaces as "▁", bytes as tokens, a first space that nobody wrote."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from llamacpp_vocabulary import ask_llama_cpp
from tiny_tokenizers import BYTES, gguf_metadata
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from pilotfish.runtime.errors import ModelFileError, UnsupportedModelError
from pilotfish.runtime.text.gguf_vocabulary import CONTROL, NORMAL, USER_DEFINED
from pilotfish.runtime.text.sentencepiece_bpe import merges_of
from pilotfish.runtime.text.tokenizer import Tokenizer
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

LINES = [
    "The pilot fish swims ahead of the shark, and the shark follows the pilot fish.",
    "A small model guesses what a large model will say; the large model checks the guesses.",
    "def add(a, b):\n    return a + b  # a sum",
    "Zwei Wörter über den Fluss: naïve café, 100 % sure?",
]
SPECIAL = ("<s>", "</s>", "<|user|>")
PLAIN = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=40)


def trained(style: str) -> tokenizers.Tokenizer:
    """A BPE with byte fallback: "prepend" as Llama 2 and Phi-3 have it, "first" as newer Llama-like ones, "never" as
    Gemma, "unigram" as T5."""
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if style == "unigram":
        inner = tokenizers.Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
        inner.decoder = decoders.Metaspace("▁", "always")
        inner.train_from_iterator(
            LINES, trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>")
        )
        return inner
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.decoder = decoders.Sequence(back if style == "never" else [*back, decoders.Strip(" ", 1, 0)])
    spaces = normalizers.Replace(" ", "▁")
    if style == "first":
        inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if style == "prepend" else spaces
    special = ["<unk>", *SPECIAL, *BYTES]
    inner.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    described = json.loads(inner.to_str())  # the trainer makes byte tokens special, which they are not
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] not in BYTES]
    described["added_tokens"].append({**described["added_tokens"][0], "id": 420, "content": "▁▁\n", "special": False})
    return tokenizers.Tokenizer.from_str(json.dumps(described))


STYLES = ("prepend", "first", "never", "unigram")
INNER = {style: trained(style) for style in STYLES}
OURS = {  # over copies, since training makes another tokenizer each time
    style: Tokenizer(tokenizers.Tokenizer.from_str(inner.to_str()), bos_id=1, eos_ids=[2], add_bos=True)
    for style, inner in INNER.items()
}


def streamed(tokenizer: Tokenizer, ids: list[int], sizes: Iterator[int]) -> str:
    """The text of tokens that arrive a few at a time."""
    stream, text, at = tokenizer.stream(), "", 0
    while at < len(ids):
        n = next(sizes)
        text += stream.push(ids[at : at + n])
        at += n
    return text + stream.finish()


@pytest.mark.parametrize("style", ["prepend", "first", "never"])
@given(text=PLAIN)
def test_text_comes_back(style: str, text: str) -> None:
    found = OURS[style].decode(OURS[style].encode(text))
    if style == "first" and text.startswith(" "):  # this rule adds no space to one that is there: both texts are one
        assert " " + found == text
    else:
        assert found == text


@pytest.mark.parametrize("style", STYLES)
@given(ids=st.lists(st.integers(0, 440), max_size=30), data=st.data())
def test_streamed_pieces_are_the_decoded_whole(style: str, ids: list[int], data: st.DataObject) -> None:
    sizes = iter(lambda: data.draw(st.integers(1, 4)), 0)
    assert streamed(OURS[style], ids, sizes) == OURS[style].decode(ids)


@pytest.mark.parametrize("style", STYLES)
@given(text=PLAIN)
def test_ids_and_text_are_the_librarys_own(style: str, text: str) -> None:
    inner, tokenizer = INNER[style], OURS[style]
    assume(not any(token in text for token in tokenizer.special_tokens))  # which the library would take for tokens
    ids = tokenizer.encode(text, bos=False).tolist()
    assert ids == inner.encode(text, add_special_tokens=False).ids
    theirs = inner.decode(ids)
    if style == "unigram":  # the library drops all spaces of the first token, we the one that nobody wrote
        assert tokenizer.decode(ids).lstrip(" ") == theirs.lstrip(" ")
    else:
        assert tokenizer.decode(ids) == theirs


@pytest.mark.parametrize("style", ["prepend", "first", "never"])
@given(ids=st.lists(st.integers(0, 420), max_size=20))
def test_any_tokens_decode_as_the_library_decodes_them(style: str, ids: list[int]) -> None:
    theirs = INNER[style].decode(ids)
    if "\ufffd" not in theirs:  # of bytes that are no character the library makes one mark each
        assert OURS[style].decode(ids) == theirs


@pytest.mark.parametrize("style", STYLES)
def test_special_tokens_cannot_be_written_by_a_text(style: str) -> None:
    tokenizer = OURS[style]
    ids = tokenizer.encode("a <|user|> b", bos=False).tolist()
    user = tokenizer.id_of("<|user|>")
    assert user is not None and user not in ids  # Unigram's search would take it for the most probable piece
    assert user in tokenizer.encode("a <|user|> b", special=True, bos=False)
    assert tokenizer.decode(ids) == ("a user b" if style == "unigram" else "a <|user|> b")  # it has no "<"


def test_only_the_first_text_gets_a_space_that_nobody_wrote() -> None:
    texts = ("The fish", "<s>The fish", "The fish</s>The<|user|>fish")
    for style in ("prepend", "first", "never"):
        inner = INNER[style]
        inner.encode_special_tokens = False
        for text in texts:
            ids = OURS[style].encode(text, special=True, bos=False).tolist()
            assert ids == inner.encode(text, add_special_tokens=False).ids, (style, text)
    the = OURS["first"].encode("The", bos=False).tolist()
    assert OURS["first"].encode("<s>The", special=True, bos=False).tolist()[1:] != the
    assert (
        OURS["prepend"].encode("<s>The", special=True, bos=False).tolist()[1:]
        == the[:0] + OURS["prepend"].encode("The", bos=False).tolist()
    )


def test_a_first_space_is_held_apart_however_the_text_arrives() -> None:
    tokenizer = tokenizer_from_gguf(gguf_metadata())
    space, the = tokenizer.id_of("▁"), tokenizer.id_of("▁the")
    assert space is not None and the is not None
    assert tokenizer.decode([space, the]) == " the"
    assert tokenizer.decode([the, the]) == "the the"
    stream = tokenizer.stream()
    assert [stream.push([1]), stream.push([space]), stream.push([the])] == ["", "", " the"]
    assert OURS["never"].decode([int(i) for i in OURS["never"].encode(" the", bos=False)]) == " the"


def test_bytes_become_one_character() -> None:
    tokenizer = OURS["never"]
    ids = tokenizer.encode("🙂", bos=False).tolist()
    assert [tokenizer.token(i) for i in ids] == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    stream = tokenizer.stream()
    assert [stream.push([i]) for i in ids] == ["", "", "", "🙂"]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "no decoder"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]), "Strip"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.ByteFallback()]), "mixes"),
        (decoders.Sequence([decoders.Replace("ab", "c")]), "Replace"),
    ],
)
def test_other_ways_to_decode_are_refused(decoder: object, message: str) -> None:
    inner = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    inner.decoder = decoder
    with pytest.raises(UnsupportedModelError, match=message):
        Tokenizer(inner)


def test_scores_decide_what_is_joined() -> None:
    tokenizer = tokenizer_from_gguf(gguf_metadata())
    words = [tokenizer.token(int(i)) for i in tokenizer.encode("the ahe")]
    assert words == ["<s>", "▁the", "▁", "a", "he"]
    assert [tokenizer.token(int(i)) for i in tokenizer.encode("b\n\n\n", bos=False)] == [
        "▁",
        "<0x62>",
        "\n\n",
        "▁",
        "<0x0A>",
    ]
    bare = tokenizer_from_gguf(gguf_metadata(prefix=False, add_bos_token=False))
    assert [bare.token(int(i)) for i in bare.encode("the the")] == ["the", "▁the"]
    assert bare.decode(bare.encode(" the é\n\n<s>")) == " the é\n\n<s>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "scores do not fit"),
        ({"scores": [0.0]}, "scores do not fit"),
        ({"scores": [float("nan")] * 269}, "scores do not fit"),
        ({"token_type": [1] * 269}, "tokens for single bytes"),
    ],
)
def test_metadata_that_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        tokenizer_from_gguf(gguf_metadata(**changes))


def learned(dummy_prefix: bool) -> dict[str, object]:
    """Metadata of a vocabulary that SentencePiece itself has learned."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=dummy_prefix,
        minloglevel=2,
    )
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(made.get_piece_size())
    kinds = [2 if made.is_unknown(i) else 3 if made.is_control(i) else 6 if made.is_byte(i) else 1 for i in ids]
    found: dict[str, object] = {
        "model": "llama",
        "tokens": [made.id_to_piece(i) for i in ids],
        "scores": [made.get_score(i) for i in ids],
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": dummy_prefix,
    }
    return {"model": made, **{f"tokenizer.ggml.{name}": value for name, value in found.items()}}


TEXTS = [*LINES, "\n".join(LINES), "  two  spaces ", "", "x", "Ünï 日本 🙂", "<s>a</s>", "the the\tthe"]


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_ids_are_sentencepieces_own(dummy_prefix: bool) -> None:
    metadata = learned(dummy_prefix)
    tokenizer = tokenizer_from_gguf(metadata)
    for text in TEXTS:
        assert tokenizer.encode(text, bos=False).tolist() == metadata["model"].encode(text), text  # type: ignore[attr-defined]
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_ids_are_llama_cpps_own(dummy_prefix: bool, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    metadata = learned(dummy_prefix)
    metadata.pop("model")
    (said,) = ask_llama_cpp(tmp_path, [metadata], TEXTS)
    tokenizer = tokenizer_from_gguf(metadata)
    assert said.ids == [tokenizer.encode(text, bos=False).tolist() for text in TEXTS]


def test_saved_and_read_it_is_the_same(tmp_path: Path) -> None:
    for style, tokenizer in OURS.items():
        tokenizer.save(tmp_path / "tokenizer.json")
        again = Tokenizer.from_file(tmp_path / "tokenizer.json", bos_id=1, eos_ids=[2], add_bos=True)
        for text in TEXTS:
            assert again.encode(text).tolist() == tokenizer.encode(text).tolist(), style
            assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@given(
    st.lists(st.text("abc\u2581\U0001f600", min_size=1, max_size=6), min_size=1, max_size=40, unique=True), st.randoms()
)
def test_every_way_to_make_a_piece_of_two_is_a_merge(pieces: list[str], random: Random) -> None:
    scores = np.array([random.randint(0, 3) for _ in pieces], dtype=np.float64)
    types = [random.choice((NORMAL, NORMAL, USER_DEFINED, CONTROL)) for _ in pieces]
    usable = {text: i for i, text in enumerate(pieces) if types[i] != CONTROL}
    expected = [
        (-scores[i], i, usable[text[:at]], usable[text[at:]])
        for text, i in usable.items()
        for at in range(1, len(text))
        if text[:at] in usable and text[at:] in usable
    ]
    assert merges_of(pieces, types, scores) == [(pieces[a], pieces[b]) for *_, a, b in sorted(expected)]
