"""Tokenizers of folders without a tokenizer.json, against the rules that SentencePiece and each family state."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sentencepiece_files import BPE, SPECIAL, UNUSED, USER_DEFINED, WORD, Piece, pieces, write_sentencepiece

from pilotfish.exporters.sources.folder_tokenizer import folder_tokenizer
from pilotfish.exporters.sources.language_codes import M2M100, MBART, MBART_50, NLLB
from pilotfish.runtime.errors import ModelFileError, PilotfishError, UnsupportedModelError
from pilotfish.runtime.files.generation_settings import languages_of
from pilotfish.runtime.text.tokenizer import Tokenizer

TEXTS = (
    "the shark",
    "the  pilot fish ",
    "  a shark",
    "that is she",
    "xyz the qqq",
    "fishfishsharkark",
    "x",
    "aaaa sshhh",
    "",
    "   ",
    "the\tshark\nthe",
    "ththththeeee",
    "日本 the 日本日本",
)


def opened(folder: Path, family: str, said: dict[str, Any] | None = None, **settings: Any) -> Tokenizer:
    """What an export of the folder reads texts with, as it comes out of the bundle again."""
    (folder / "config.json").write_text(json.dumps({"model_type": family, **settings}))
    if said is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    made, template = folder_tokenizer(folder, {"model_type": family, **settings})
    assert template is None
    made.save(folder / "saved.json")
    again = Tokenizer.from_file(folder / "saved.json", bos_id=made.bos_id, eos_ids=made.ordered_eos_ids)
    for text in TEXTS:
        assert again.encode_source(text).tolist() == made.encode_source(text).tolist()
    return again


def ready(text: str) -> str:
    """A text as SentencePiece cuts it: no spaces at its ends, one between words, one before the first."""
    words = [word for word in text.split(" ") if word]
    return "".join("▁" + word for word in words)


def best_cut(text: str, found: Sequence[Piece]) -> list[str]:
    """The most probable cut, every one tried; characters without a piece weigh 10 less than the worst piece."""
    scores = {text: score for text, score, kind in found if kind == 1}
    worst = min(scores.values()) - 10
    best: list[tuple[float, list[str]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        ways = []
        for start in range(end):
            part = text[start:end]
            score = scores.get(part, worst if end - start == 1 else None)
            if score is not None:
                ways.append((best[start][0] + score, [*best[start][1], part]))
        best.append(max(ways, key=lambda way: way[0]))
    return best[-1][1]


def merged(text: str, found: Sequence[Piece]) -> list[str]:
    """Neighbours joined, those whose joined text has the highest score first, the leftmost of several."""
    scores = {text: score for text, score, kind in found if kind == 1}
    parts = list(text)
    while True:
        ways = [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not ways:
            return parts
        i = -max(ways)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def ids_of(parts: Sequence[str], ids: dict[str, int], unknown: int) -> list[int]:
    """Tokens of pieces; unknown ones in a row are one."""
    out: list[int] = []
    for part in parts:
        token = ids.get(part, unknown)
        if token != unknown or out[-1:] != [unknown]:
            out.append(token)
    return out


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_text_is_cut_as_sentencepiece_cuts_it(kind: str, tmp_path: Path) -> None:
    found = pieces("ha", "at")
    cut = best_cut if kind == "unigram" else merged
    write_sentencepiece(tmp_path / "spiece.model", found, 1 if kind == "unigram" else BPE)
    tokenizer = opened(tmp_path, "t5")
    ids = {text: i for i, (text, _, _) in enumerate(found)}
    seen = set()
    for text in TEXTS:
        expected = ids_of(cut(ready(text), found), ids, 0)
        assert tokenizer.encode_source(text).tolist() == [*expected, 2], text
        assert tokenizer.decode(expected) == " ".join(text.split(" ")).strip() or 0 in expected or "  " in text
        seen |= set(expected)
    assert 0 in seen and len(seen) > 20


def test_spaces_are_kept_where_the_model_keeps_them(tmp_path: Path) -> None:
    found = [*pieces(), ("▁▁", -3.0, 1)]
    write_sentencepiece(tmp_path / "spiece.model", found, merged=False)
    tokenizer = opened(tmp_path, "t5")
    ids = {text: i for i, (text, _, _) in enumerate(found)}
    for text in ("the  a", " the   a ", "  "):
        assert tokenizer.encode(text).tolist() == ids_of(best_cut("▁" + text.replace(" ", "▁"), found), ids, 0)
    assert ids["▁▁"] in tokenizer.encode("the  a")
    assert tokenizer.decode(tokenizer.encode("the   a ")) == "the   a "
    write_sentencepiece(tmp_path / "spiece.model", found, merged=False, prefixed=False)
    assert opened(tmp_path, "t5").encode("th").tolist() == [ids["th"]]


def test_t5_adds_its_sentinels_from_the_last_to_the_first(tmp_path: Path) -> None:
    found = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), *pieces()[3:], ("<2de>", -1.0, USER_DEFINED)]
    write_sentencepiece(tmp_path / "spiece.model", found)
    tokenizer = opened(tmp_path, "t5", {"extra_ids": 5}, vocab_size=99)
    n = len(found)
    assert [tokenizer.token(n + i) for i in range(5)] == [f"<extra_id_{i}>" for i in (4, 3, 2, 1, 0)]
    assert tokenizer.vocab_size == n + 5
    assert tokenizer.encode_source("the <extra_id_1>", special=True).tolist()[-2:] == [n + 3, 1]
    assert n + 3 not in tokenizer.encode_source("the <extra_id_1>")
    assert tokenizer.encode("<2de> a").tolist()[0] == n - 1  # MADLAD's languages are pieces of the user's own
    with pytest.raises(ModelFileError, match=rf"has {n + 5} tokens, but the model 20"):
        opened(tmp_path, "t5", vocab_size=20)
    with pytest.raises(ModelFileError, match="extra_ids is -1"):
        opened(tmp_path, "mt5", {"extra_ids": -1})


def test_pegasus_puts_its_pieces_behind_what_it_was_trained_with(tmp_path: Path) -> None:
    found = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), *pieces()[3:]]
    write_sentencepiece(tmp_path / "spiece.model", found)
    tokenizer = opened(tmp_path, "pegasus")
    first = [tokenizer.token(i) for i in (0, 1, 2, 3, 4, 104, 105)]
    assert first == ["<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_102>", "<unk>"]
    assert tokenizer.encode_source("the").tolist() == [103 + 3, 1]


@pytest.mark.parametrize(
    ("family", "said", "languages", "frame"),
    [
        ("mbart", {}, MBART, ("", "</s> en_XX")),
        ("mbart", {"src_lang": "de_DE", "tokenizer_class": "MBartTokenizerFast"}, MBART, ("", "</s> de_DE")),
        ("mbart", {"tokenizer_class": "MBart50Tokenizer"}, MBART_50, ("en_XX", "</s>")),
        ("m2m_100", {"tokenizer_class": "NllbTokenizer"}, NLLB, ("eng_Latn", "</s>")),
        ("m2m_100", {"src_lang": "deu_Latn"}, NLLB, ("deu_Latn", "</s>")),
        ("m2m_100", {"legacy_behaviour": True}, NLLB, ("", "</s> eng_Latn")),
    ],
)
def test_fairseq_counts_pieces_from_four_and_languages_behind_them(
    tmp_path: Path, family: str, said: dict[str, Any], languages: Sequence[str], frame: tuple[str, str]
) -> None:
    found = pieces()
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", found)
    tokenizer = opened(tmp_path, family, said)
    n = len(found) + 1
    assert [tokenizer.token(i) for i in (0, 1, 2, 3, 4)] == ["<s>", "<pad>", "</s>", "<unk>", found[3][0]]
    assert [tokenizer.id_of(code) for code in languages] == list(range(n, n + len(languages)))
    assert tokenizer.id_of("<mask>") == n + len(languages) == tokenizer.vocab_size - 1
    before, behind = ([tokenizer.id_of(name) for name in part.split()] for part in frame)
    assert tokenizer.encode_source("the shark").tolist() == [*before, 4, 5, *behind]
    assert not tokenizer.add_bos
    assert list(languages_of(tokenizer).tokens) == sorted(languages) and not languages_of(tokenizer).in_source


def names(folder: Path, found: Sequence[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(found)}))


def test_m2m100_reads_a_piece_by_its_name(tmp_path: Path) -> None:
    found = pieces()
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", found)
    listed = ["<s>", "<pad>", "</s>", "<unk>", *reversed([p[0] for p in found[3:] if p[0] not in ("▁shark", "x")])]
    names(tmp_path, [*listed, "madeup"])
    tokenizer = opened(tmp_path, "m2m_100", {"src_lang": "de"}, vocab_size=len(listed) + 1 + 108)
    ids = {name: i for i, name in enumerate(listed)}
    n = len(listed) + 1
    assert tokenizer.vocab_size == n + 100
    assert [tokenizer.id_of(f"__{code}__") for code in M2M100["m2m100"]] == list(range(n, n + 100))
    de = n + M2M100["m2m100"].index("de")
    assert tokenizer.encode_source("the fish").tolist() == [de, ids["▁the"], ids["▁fish"], 2]
    assert tokenizer.encode("shark shark").tolist() == [3, 3]  # a piece without a name, twice
    assert tokenizer.encode("the 日本").tolist() == [ids["▁the"], ids["▁"], 3]
    assert languages_of(tokenizer).tokens["de"] == de
    assert tokenizer.decode([de, ids["▁the"], ids["▁fish"], 2]) == "the fish"


@pytest.fixture
def marian(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of two languages and the tokens of its vocab.json."""
    source, target = pieces(), [*SPECIAL, ("▁der", -1.0, 1), ("▁hai", -2.0, 1), ("ß", -3.0, 1), ("ßß", -4.0, 1)]
    write_sentencepiece(tmp_path / "source.spm", source)
    write_sentencepiece(tmp_path / "target.spm", target)
    texts = dict.fromkeys(p[0] for p in (*target[3:], *reversed(source[3:])) if p[0] != "▁fish")
    listed = ["</s>", "<unk>", *texts, ">>fra<<", ">>deu<<", "<pad>"]
    names(tmp_path, listed)
    return tmp_path, listed


def test_marian_reads_source_pieces_by_their_names(marian: tuple[Path, list[str]]) -> None:
    folder, listed = marian
    tokenizer = opened(folder, "marian", {"source_lang": "en", "target_lang": "de"}, vocab_size=len(listed))
    ids = {name: i for i, name in enumerate(listed)}
    assert tokenizer.vocab_size == len(listed)
    assert tokenizer.encode_source("the shark").tolist() == [ids["▁the"], ids["▁shark"], 0]
    assert tokenizer.encode("the fish").tolist() == [ids["▁the"], 1]  # cut as one piece, which has no name
    assert tokenizer.encode("ß").tolist() == [ids["▁"], ids["ß"]]  # unknown to the source, named for the target
    assert tokenizer.encode("ßß").tolist() == [ids["▁"], ids["ßß"]]
    assert tokenizer.encode("ßßß").tolist() == [ids["▁"], 1]
    assert tokenizer.encode("der").tolist() != [ids["▁der"]]  # no text is cut into the target's words
    assert tokenizer.decode([ids["▁der"], ids["▁hai"], 0]) == "der hai"
    assert tokenizer.encode_source(">>fra<< the").tolist() == [ids[">>fra<<"], ids["▁the"], 0]
    assert ids[">>fra<<"] not in tokenizer.encode_source("the >>fra<<")
    found = languages_of(tokenizer)
    assert found.tokens == {"deu": ids[">>deu<<"], "fra": ids[">>fra<<"]} and found.in_source


def test_what_a_bpe_does_not_know_is_not_looked_up(marian: tuple[Path, list[str]]) -> None:
    write_sentencepiece(marian[0] / "source.spm", pieces(), BPE)
    with pytest.raises(UnsupportedModelError, match=r"names 'ß', which source\.spm knows nothing of: not yet"):
        opened(marian[0], "marian")


def test_byt5_reads_bytes(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "t5", {"tokenizer_class": "ByT5Tokenizer"}, vocab_size=384)
    for text in ("a", "Fluß 日本\n\x00 ", "", "  x  "):
        assert tokenizer.encode_source(text).tolist() == [*(3 + byte for byte in text.encode()), 1]
        assert tokenizer.decode(tokenizer.encode_source(text)) == text
    assert tokenizer.vocab_size == 384 and tokenizer.id_of("<extra_id_0>") == 259
    assert tokenizer.eos_ids == {1}


def damaged(name: str, content: bytes | None) -> Any:
    def damage(folder: Path) -> None:
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

    return damage


def of_word_kind(folder: Path) -> None:
    write_sentencepiece(folder / "source.spm", pieces(), WORD)


def of_another_model(folder: Path) -> None:
    names(folder, ["</s>", "<unk>", "<pad>", *(f"w{i}" for i in range(60))])


def renumbered(folder: Path) -> None:
    (folder / "vocab.json").write_text('{"</s>": 0, "<unk>": 2, "<pad>": 3}')


def twice(folder: Path) -> None:
    write_sentencepiece(folder / "source.spm", [*pieces(), *pieces()])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (damaged("target.spm", None), ModelFileError, r"has neither a tokenizer.json nor target\.spm.*missing file"),
        (damaged("vocab.json", None), ModelFileError, r"nor vocab\.json"),
        (damaged("source.spm", b""), ModelFileError, r"source\.spm is not a SentencePiece model: it holds no pieces"),
        (damaged("source.spm", b"\x0a\xff\xff\xff\xff\x0f"), ModelFileError, "cut short or damaged"),
        (damaged("source.spm", b"\x0a\x03\x0a\x01\xff"), ModelFileError, "is not a SentencePiece model"),
        (damaged("source.spm", b"\x08\x01"), ModelFileError, "a number where there should be bytes"),
        (damaged("vocab.json", b"[]"), ModelFileError, "does not hold a JSON object"),
        (of_word_kind, UnsupportedModelError, "by word: not yet"),
        (of_another_model, ModelFileError, r"vocab\.json names 0 of the 4 pieces of target\.spm: .* not belong"),
        (renumbered, ModelFileError, "does not number its 3 tokens from 0 on"),
        (twice, ModelFileError, "same piece twice"),
        (damaged("target_vocab.json", b"{}"), UnsupportedModelError, "a vocabulary for each of its two languages"),
    ],
)
def test_files_that_are_damaged_or_contradict_each_other(
    marian: tuple[Path, list[str]], damage: Any, error: type[PilotfishError], message: str
) -> None:
    damage(marian[0])
    with pytest.raises(error, match=message):
        opened(marian[0], "marian")


def test_what_the_files_do_not_say_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"neither a tokenizer.json nor sentencepiece\.bpe\.model"):
        opened(tmp_path, "m2m_100")
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json\. Where"):
        opened(tmp_path, "bart")
    with pytest.raises(UnsupportedModelError, match="Its SMALL100Tokenizer is not one of those that are known"):
        opened(tmp_path, "m2m_100", {"tokenizer_class": "SMALL100Tokenizer"})
    (tmp_path / "tokenizer_config.json").unlink()
    write_sentencepiece(tmp_path / "sentencepiece.bpe.model", pieces(), BPE)
    with pytest.raises(ModelFileError, match=r"names 'elvish' .* no token of that name"):
        opened(tmp_path, "m2m_100", {"src_lang": "elvish"})
    names(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", *(p[0] for p in pieces()[3:])])
    with pytest.raises(UnsupportedModelError, match="language_codes 'x'; known are m2m100, wmt21"):
        opened(tmp_path, "m2m_100", {"language_codes": "x"})


def test_a_piece_out_of_use_keeps_its_number_and_is_never_read(tmp_path: Path) -> None:
    found = [*pieces(), ("▁the▁", -0.5, UNUSED)]
    write_sentencepiece(tmp_path / "spiece.model", found)
    tokenizer = opened(tmp_path, "t5")
    assert len(found) - 1 not in tokenizer.encode("the the")
    assert tokenizer.piece(len(found) - 1) == b" the "
