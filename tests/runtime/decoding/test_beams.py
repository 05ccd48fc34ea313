"""Beam search: what transformers finds, on tiny models; what an exhaustive search finds, on the toy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tiers import quick

from pilotfish import Beams
from pilotfish.backends import get
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.beam_search import beam_search, search
from pilotfish.runtime.decoding.loop import Limits
from pilotfish.runtime.errors import AbilityError, ContextFullError, NoMemoryError, OptionError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import EncoderInfo, Tokens, Weights, as_tokens
from pilotfish.runtime.memory import free_memory
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH, RowRule
from pilotfish.testing.toy import ALL, ToyWeights
from pilotfish.testing.toy_model import toy_model, toy_weights

SOURCE = as_tokens([1, 2, 0, 2])
START = as_tokens([2, 0])


def toy(rows: RowRule = ANY_WIDTH, **options: Any) -> CachedSequence:
    made = ToyWeights(3, encoder=EncoderInfo(decoder_start=(2, 0)), **options).session()
    sequence = CachedSequence(made, rows)  # type: ignore[arg-type]
    sequence.encode(SOURCE)
    sequence.cover(START[:-1])
    return sequence


def log_prob(tokens: tuple[int, ...]) -> float:
    session = ToyWeights(3, encoder=EncoderInfo(decoder_start=(2, 0))).session()
    session.encode(SOURCE)
    wide = session.forward(np.array([*START, *tokens]), n_logits=len(tokens) + 1).logits.astype(np.float64)[:-1]
    logs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return float(logs[np.arange(len(tokens)), list(tokens)].sum())


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0, 2.0])
def test_beams_for_every_beginning_find_the_best_of_all_answers(penalty: float) -> None:
    longest, stop = 4, 1
    every = [t for n in range(1, longest + 1) for t in itertools.product(range(3), repeat=n) if stop not in t[:-1]]
    answers = [t for t in every if t[-1] == stop or len(t) == longest]
    best = sorted(answers, key=lambda t: -log_prob(t) / len(t) ** penalty)
    beams = Beams(100, length_penalty=penalty, early_stopping="never")
    found, rounds = beam_search(toy(), START, beams, longest, frozenset({stop}))
    assert [a.tokens for a in found] == best
    assert found[0].worth == pytest.approx(log_prob(best[0]) / len(best[0]) ** penalty)
    assert tuple(t for r in rounds for t in r.tokens) == best[0]
    assert rounds[-1].finish_reason == ("stop" if best[0][-1] == stop else "length")


def test_one_beam_is_greedy_decoding() -> None:
    with toy_model(toy_weights(7.0)) as model:
        text = "some words to begin with"
        greedy = model.generate(text, max_new_tokens=20)
        assert model.generate(text, max_new_tokens=20, beams=1).token_ids == greedy.token_ids
        assert model.generate(text, max_new_tokens=20).token_ids == greedy.token_ids


def test_beams_leave_the_model_as_it_was_and_close_what_they_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    weights = toy_weights(6.0)
    make = weights.session
    monkeypatch.setattr(weights, "session", lambda n=None: opened.append(make(n)) or opened[-1])
    with toy_model(weights) as model:
        text = "some words"
        before = model.generate(text, max_new_tokens=12).token_ids
        result = model.generate(text, max_new_tokens=12, beams=4)
        assert result.stats.n_tokens == len(result.token_ids) and result.stats.drafted == 0
        assert result.stats.n_rounds >= len(result.token_ids) and result.text
        assert [session.closed for session in opened].count(False) == 1  # the model's own
        assert model.generate(text, max_new_tokens=12).token_ids == before
        assert sum(log for _, log in scored(model, text, result.token_ids)) >= sum(
            log for _, log in scored(model, text, before)
        )


def scored(model: Any, text: str, tokens: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    session = model.target.session()
    session.encode(model.encode(text))
    context = np.array([256, *tokens])
    wide = session.forward(context, n_logits=len(context)).logits.astype(np.float64)
    for row, token in zip(wide, tokens, strict=False):
        yield token, float(row[token] - np.log(np.exp(row - row.max()).sum()) - row.max())
    session.close()


def test_beams_stay_in_the_row_class() -> None:
    narrow, wide = toy(row_noise=0.5), toy(RowRule((2, 3, 4)), row_noise=0.5)
    ours = beam_search(wide, START, Beams(3), 6, frozenset({1}))
    quiet = beam_search(toy(), START, Beams(3), 6, frozenset({1}))
    noisy = beam_search(narrow, START, Beams(3), 6, frozenset({1}))
    assert ours[0] == quiet[0] != noisy[0] and narrow.rows is ANY_WIDTH
    assert {r.width % 2 for r in ours[1]} == {0}


def test_a_cancelled_search_gives_what_it_has() -> None:
    asked = itertools.count()
    limits = Limits(max_new_tokens=9, cancelled=lambda: next(asked) > 3)
    rounds = list(search(toy(), START, beams=Beams(2), limits=limits, source=SOURCE))
    assert rounds[-1].finish_reason == "cancelled" and 0 < sum(len(r.tokens) for r in rounds) < 9
    at_once = list(search(toy(), START, beams=Beams(2), limits=Limits(cancelled=lambda: True), source=SOURCE))
    assert [r.finish_reason for r in at_once] == ["cancelled"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 1.0}, "sampling or penalties"),
        ({"stop": ["x"]}, "stop strings"),
        ({"beams": 0}, "1 or more"),
        ({"beams": Beams, "early_stopping": "soon"}, "early_stopping"),
    ],
)
def test_what_beams_cannot_be_combined_with(options: dict[str, Any], says: str) -> None:
    with toy_model(toy_weights()) as model, pytest.raises(OptionError, match=says):
        if options.get("beams") is Beams:
            Beams(2, early_stopping=options["early_stopping"])
        model.generate("a text", **{"beams": 2, **options})


def test_what_a_session_cannot_do_is_said_before_anything_changes() -> None:
    with pytest.raises(AbilityError, match="toy engine cannot here"):
        list(search(toy(abilities=ALL - {"fork"}), START, beams=Beams(2), limits=Limits(), source=SOURCE))
    with toy_model(toy_weights()) as model, pytest.raises(ContextFullError, match="fewer new tokens"):
        model.generate("a text", beams=2, max_new_tokens=4000)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Any, Weights]]]:
    """A tiny model in transformers and on ONNX Runtime, in f32."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tiny_encoder_decoders import tiny_encoder_decoder

    from pilotfish.exporters.encoder_decoder_bundle import export_encoder_decoder
    from pilotfish.exporters.quantize.weight_form import WeightForm

    made: dict[str, tuple[Any, Weights]] = {}

    def pair(name: str) -> tuple[Any, Weights]:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(name)
            model = tiny_encoder_decoder(name, seed=3)
            export_encoder_decoder(model, folder / "b", WeightForm("fp32"), model_id="tiny", activations="f32")
            made[name] = model, get("onnx").open(open_model(folder / "b"), device=None, threads=2, kv_dtype=None)
        return made[name]

    yield pair
    for _, weights in made.values():
        weights.close()


SETTINGS = [(1.0, False), (1.0, True), (0.0, "never"), (2.0, False), (2.0, "never"), (-1.0, False), (-0.5, "never")]


@pytest.mark.parametrize("name", quick(("t5", "flan", "umt5", "bart", "m2m100", "marian")))
def test_the_answers_are_those_of_transformers(name: str, pairs: Callable[[str], tuple[Any, Weights]]) -> None:
    import torch

    model, weights = pairs(name)
    sequence = CachedSequence(weights.session(), RowRule((2, 3, 4)))
    n_ended = 0
    for size, (penalty, early) in itertools.product((4,), SETTINGS):
        source: Tokens = np.random.default_rng(size).integers(3, 120, 12)
        with torch.no_grad():
            asked = {"inputs": torch.from_numpy(source)[None], "do_sample": False, "use_cache": False}
            greedy = model.generate(**asked, max_new_tokens=10, eos_token_id=None)[0].tolist()
            stops = sorted({greedy[4], greedy[-1]})  # ends that this model does come to
            options = {"num_beams": size, "length_penalty": penalty, "early_stopping": early, "max_new_tokens": 11}
            found = model.generate(**asked, eos_token_id=stops, **options)
        expected = found[0].tolist()[1:]
        while len(expected) > 1 and expected[-1] == 0 and 0 not in stops:
            expected.pop()  # padding
        sequence.encode(source)
        start = as_tokens(weights.info.encoder.decoder_start if weights.info.encoder else ())
        sequence.cover(start[:-1])
        answers, _ = beam_search(sequence, start, Beams(size, penalty, early), 11, frozenset(stops))
        assert list(answers[0].tokens) == expected, (size, penalty, early)
        n_ended += answers[0].finish_reason == "stop"
    assert 0 < n_ended <= 7
    sequence.session.close()


def test_decoders_search_too() -> None:
    prompt = as_tokens([0, 1, 2])
    sequence = CachedSequence(ToyWeights(3).session())  # type: ignore[arg-type]
    rounds = list(search(sequence, prompt, beams=Beams(1), limits=Limits(max_new_tokens=6)))
    found = [t for r in rounds for t in r.tokens]
    for i, token in enumerate(found):
        logits = ToyWeights(3).session().forward(np.array([*prompt, *found[:i]]), n_logits=1).logits[0]
        assert token == logits.argmax()
    assert len(found) == 6 and sequence.tokens.tolist() == prompt[:-1].tolist()


def test_too_little_memory_for_beams_names_them_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    target, forks = toy(), list[Any]()
    fork = type(target.session).fork

    def short(session: Any) -> Any:
        if len(forks) == 3:
            raise NoMemoryError("there is no memory for a cache of 8 entries (1 MiB). Close other programs.")
        forks.append(fork(session))
        return forks[-1]

    monkeypatch.setattr(type(target.session), "fork", short)
    with pytest.raises(NoMemoryError, match=r"3 beams of up to .* a cache of 8 entries .* Ask for fewer beams"):
        list(search(target, START, beams=Beams(3), limits=Limits(6, frozenset({1})), source=SOURCE))
    assert len(forks) == 3 and all(one.closed for one in forks)


def test_a_limit_on_the_process_counts_as_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used // 2, resource.RLIM_INFINITY))
    assert free_memory() == 0
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2 * used + (1 << 40), resource.RLIM_INFINITY))
    assert 0 < free_memory() <= psutil.virtual_memory().total
    monkeypatch.setattr("pilotfish.runtime.decoding.beam_search.free_memory", lambda: 100)
    with pytest.raises(OptionError, match=r"e-07 GB of memory are free for this process; leave beams out"):
        list(search(toy(), START, beams=Beams(3), limits=Limits(6, frozenset({1})), source=SOURCE))
