# ruff: noqa: RUF001
"""Tokenizers made of trained SentencePiece files, token for token against the library and transformers' own classes."""

from __future__ import annotations

import io
import itertools
import json
import random
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pilotfish.exporters.sources.folder_tokenizer import folder_tokenizer
from pilotfish.exporters.sources.language_codes import MBART, NLLB

sentencepiece = pytest.importorskip("sentencepiece", reason="models are trained with the package sentencepiece")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[3]
SENTENCES = (
    "Der Führer des Fischschwarms heißt Lotsenfisch, und er schwimmt vor dem Hai.",
    "Le poisson pilote accompagne le requin ; il n'est jamais mangé, dit-on à l'œil nu.",
    "El pez piloto sigue al tiburón por todo el océano, ¿no es así? ¡Sí!",
    "Рыба-лоцман плывёт впереди акулы и никогда не боится её зубов.",
    "水先案内の魚は鮫の前を泳ぎ、鮫はその後を追って海を渡る。",
    "领航鱼游在鲨鱼前面，鲨鱼跟着它穿过大海。",
    "يسبح السمك الطيار أمام القرش ويتبعه في كل مكان.",
    "पायलट मछली शार्क के आगे तैरती है और शार्क उसका पीछा करती है।",
    "파일럿 물고기는 상어 앞에서 헤엄치고 상어는 그 뒤를 따른다.",
    "Ψάρι πιλότος κολυμπά μπροστά από τον καρχαρία.",
    "Cá hoa tiêu bơi trước cá mập và không bao giờ bị ăn thịt.",
    "Pilot balığı köpekbalığının önünde yüzer, İstanbul'da ığdır.",
)
ODD = (
    *("ﬁne ﬂow", "ＦＵＬＬ ｗｉｄｔｈ １２３", "cafe\u0301 nai\u0308ve", "½ ¼ ² ³ ™ ©", "a\u00a0b\u2003c\u3000d"),
    *("tab\there\nand\r\nthere", "😀 😃👍🏽 👩\u200d👩\u200d👧", "…—–‘quoted’“double”", "x=1;y=2//z", "    leading"),
    *("trailing    ", "in   the   middle", "0123456789 1,234.56", "zero\u200bwidth\ufeff", "soft\u00adhyphen"),
    *("ÅÅÅ å", "ǅ ǆ Ǆ", "①②③ ㈱ ㎏", "ｶﾞｷﾞｸﾞ", "🇩🇪🇫🇷", "\x01\x02 control", "▁already▁marked", "µ Ω K Å"),
)
SCRIPTS = (0x20, 0xA0, 0x370, 0x400, 0x600, 0x900, 0x3040, 0x4E00, 0xAC00, 0xFF00)


def corpus() -> list[str]:
    """Lines of the documentation, and sentences of several scripts often enough to be learned."""
    lines = [line.strip() for page in sorted(DOCS.glob("docs/*.md")) for line in page.read_text("utf-8").splitlines()]
    return [line for line in lines if 20 < len(line) < 400] + list(SENTENCES) * 12


def texts() -> list[str]:
    """A thousand of them: lines, oddities, and random mixtures of all."""
    draw = random.Random(7)
    words = [word for line in [*corpus()[::7], *SENTENCES, *ODD] for word in line.split()]
    gaps = (" ", " ", " ", "  ", "\n", "", "\t", ", ")
    mixed = ["".join(draw.choice(words) + draw.choice(gaps) for _ in range(draw.randint(1, 14))) for _ in range(700)]
    chars = [chr(code) for start in SCRIPTS for code in range(start, start + 64)]
    noise = ["".join(draw.choices(chars, k=draw.randint(1, 24))) for _ in range(150)]
    return [*SENTENCES, *ODD, *corpus()[:150], *mixed, *noise]


def loses_a_mark(text: str) -> bool:
    """Whether the library replaces a character together with the mark behind it: docs/encoder-decoder.md."""
    pairs = itertools.pairwise(text)
    return any(unicodedata.normalize("NFKC", a) != a and unicodedata.category(b)[0] == "M" for a, b in pairs)


def train(path: Path, kind: str, lines: Sequence[str], n_pieces: int = 900, rule: str = "nmt_nfkc", **ids: int) -> Any:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=n_pieces,
        model_type=kind,
        normalization_rule_name=rule,
        character_coverage=0.995,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **ids,
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def write(folder: Path, family: str, **said: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def t5(folder: Path, kind: str) -> Callable[[str], list[int]]:
    model = train(folder / "spiece.model", kind, corpus(), **T5_IDS)
    write(folder, "t5")
    return lambda text: [*model.encode(text), 1]


def pegasus(folder: Path, kind: str) -> Callable[[str], list[int]]:
    model = train(folder / "spiece.model", kind, corpus(), **T5_IDS)
    write(folder, "pegasus")
    return lambda text: [*(i + 103 for i in model.encode(text)), 1]


def mbart(folder: Path, kind: str) -> Callable[[str], list[int]]:
    model = train(folder / "sentencepiece.bpe.model", kind, corpus())
    write(folder, "mbart", src_lang="de_DE")
    de = len(model) + 1 + MBART.index("de_DE")
    return lambda text: [*(i + 1 if i else 3 for i in model.encode(text)), 2, de]


def nllb(folder: Path, kind: str) -> Callable[[str], list[int]]:
    model = train(folder / "sentencepiece.bpe.model", kind, corpus(), rule="nmt_nfkc")
    write(folder, "m2m_100", src_lang="fra_Latn")
    fra = len(model) + 1 + NLLB.index("fra_Latn")
    return lambda text: [fra, *(i + 1 if i else 3 for i in model.encode(text)), 2]


def m2m100(folder: Path, kind: str) -> Callable[[str], list[int]]:
    model = train(folder / "sentencepiece.bpe.model", kind, corpus(), rule="identity" if kind == "bpe" else "nmt_nfkc")
    pieces = [model.id_to_piece(i) for i in range(3, len(model)) if i % 29]
    random.Random(3).shuffle(pieces)
    named = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *(f"madeupword{i:04}" for i in range(4))]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(named)}))
    write(folder, "m2m_100", src_lang="fr")
    files = {"vocab_file": str(folder / "vocab.json"), "spm_file": str(folder / "sentencepiece.bpe.model")}
    theirs = transformers.M2M100Tokenizer(**files, src_lang="fr")
    return lambda text: theirs(text).input_ids  # type: ignore[no-any-return]


def marian(folder: Path, kind: str) -> Callable[[str], list[int]]:
    source = train(folder / "source.spm", kind, corpus())
    target = train(folder / "target.spm", kind, [*SENTENCES[:4]] * 20, n_pieces=160)
    pieces = [m.id_to_piece(i) for m in (target, source) for i in range(3, len(m)) if i % 31]
    random.Random(3).shuffle(pieces)
    named = ["</s>", "<unk>", *dict.fromkeys(pieces), ">>fra<<", ">>deu<<", "ß", "щ", "<pad>"]
    named = list(dict.fromkeys(named))
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(named)}))
    write(folder, "marian", source_lang="en", target_lang="de")
    files = {name: str(folder / f"{file}") for name, file in _MARIAN}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.MarianTokenizer(**files)
    return lambda text: theirs(text).input_ids  # type: ignore[no-any-return]


_MARIAN = (("source_spm", "source.spm"), ("target_spm", "target.spm"), ("vocab", "vocab.json"))


def byt5(folder: Path, kind: str) -> Callable[[str], list[int]]:
    write(folder, "t5", tokenizer_class="ByT5Tokenizer")
    theirs = transformers.ByT5Tokenizer()
    return lambda text: theirs(text).input_ids  # type: ignore[no-any-return]


KINDS = {
    "t5 unigram": t5,
    "pegasus unigram": pegasus,
    "mbart unigram": mbart,
    "nllb bpe": nllb,
    "m2m100 bpe": m2m100,
    "m2m100 unigram": m2m100,
    "marian unigram": marian,
    "byt5 bytes": byt5,
}


def compared(name: str, folder: Path) -> Iterator[tuple[str, list[int], list[int]]]:
    theirs = KINDS[name](folder, name.split()[1])
    ours, _ = folder_tokenizer(folder, json.loads((folder / "config.json").read_text()))
    for text in texts():
        yield text, ours.encode_source(text).tolist(), list(theirs(text))


@pytest.mark.parametrize("name", KINDS)
def test_a_text_has_the_tokens_of_the_slow_tokenizer(name: str, tmp_path: Path) -> None:
    found = list(compared(name, tmp_path))
    assert len([text for text, _, _ in found if not loses_a_mark(text)]) > 1000
    assert len({i for _, _, ids in found for i in ids}) > 100
    wrong = [one for one in found if one[1] != one[2] and not loses_a_mark(one[0])]
    assert wrong == []


def test_marian_s_languages_come_first(tmp_path: Path) -> None:
    theirs = marian(tmp_path, "unigram")
    ours, _ = folder_tokenizer(tmp_path, {"model_type": "marian"})
    for text in (">>fra<< The pilot fish", ">>deu<<The", "The >>fra", ">> quoted"):
        assert ours.encode_source(text).tolist() == theirs(text)
