"""Numbers that judge an export: against plain formulas, with and without the source, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pilotfish.exporters.parity.parity import Answers, GreedyRun, Parity, Tally, answers_to
from pilotfish.exporters.parity.thresholds import Thresholds, thresholds_of
from pilotfish.exporters.quantize.weight_form import Stored, WeightForm
from pilotfish.runtime.errors import ModelFileError, OptionError
from pilotfish.runtime.interfaces import Floats, Tokens

VOCAB = 40


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def make(rng: np.random.Generator) -> tuple[Answers, dict[str, Floats]]:
    """Answers to a text that is compared whole, and to one whose last 20 of 33 rows are."""
    texts = {"short": rng.integers(0, VOCAB, 9), "long": rng.integers(0, VOCAB, 33)}
    logits = {"short": rows(rng, 9), "long": rows(rng, 20)}
    run = GreedyRun(np.arange(4), np.array([7, 8, 9], np.int64), np.array([2.0, 0.01, 3.0], np.float32))
    return answers_to(texts, logits, (run, run)), logits


def rows(rng: np.random.Generator, n: int) -> Floats:
    return (3 * rng.standard_normal((n, VOCAB)) + 5).astype(np.float32)


def judged(answers: Answers, export: dict[str, Floats], source: dict[str, Floats] | None = None) -> Parity:
    tally = Tally(answers)
    for name in answers.texts:
        tally.add_text(name, export[name], None if source is None else source[name])
    for number, run in enumerate(answers.runs):
        tally.add_answer(number, run.ids)
    return tally.result()


def softmax(x: Floats) -> Floats:
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def perplexity(texts: dict[str, Tokens], logits: dict[str, Floats]) -> float:
    """As the textbook has it, a token at a time."""
    losses = []
    for name, tokens in texts.items():
        distributions, first = softmax(logits[name]), len(tokens) - len(logits[name])
        losses += [-math.log(distributions[i, tokens[first + i + 1]]) for i in range(len(distributions) - 1)]
    return math.exp(sum(losses) / len(losses))


def test_a_source_agrees_with_itself(rng: np.random.Generator) -> None:
    answers, logits = make(rng)
    parity = judged(answers, logits, logits)
    assert parity.n_tokens == 29
    assert (parity.top1, parity.agreement, parity.greedy_equal, parity.greedy_first) == (1.0, 1.0, 2, None)
    assert parity.max_difference == parity.mean_difference == parity.relative_difference == 0.0
    assert parity.kl == pytest.approx(0, abs=1e-9) and parity.regret == pytest.approx(0, abs=1e-6)
    assert parity.perplexity_ratio == pytest.approx(1, abs=1e-6)
    for stored in ("fp32", "fp16", "int8", "int4"):
        assert Thresholds.for_weights(WeightForm(stored), "f32").problems(parity) == ()


def test_numbers_are_those_of_the_formulas(rng: np.random.Generator) -> None:
    answers, source = make(rng)
    export = {name: x + rng.standard_normal(x.shape).astype(np.float32) for name, x in source.items()}
    parity = judged(answers, export, source)
    p, q = np.concatenate([*source.values()]), np.concatenate([*export.values()])
    distributions_p, distributions_q = softmax(p), softmax(q)
    difference = np.abs(p.astype(np.float64) - q)
    assert parity.top1 == np.mean(p.argmax(-1) == q.argmax(-1))
    assert parity.kl == pytest.approx(
        np.mean((distributions_p * np.log(distributions_p / distributions_q)).sum(-1)), rel=1e-6
    )
    assert parity.max_difference == pytest.approx(difference.max(), rel=1e-6)
    assert parity.mean_difference == pytest.approx(difference.mean(), rel=1e-6)
    texts = {name: text.tokens for name, text in answers.texts.items()}
    assert parity.perplexity_source == pytest.approx(perplexity(texts, source), rel=1e-5)
    assert parity.perplexity == pytest.approx(perplexity(texts, export), rel=1e-5)
    regret = [np.log(a.max() / a[b.argmax()]) for a, b in zip(distributions_p, distributions_q, strict=True)]
    assert parity.regret == pytest.approx(np.mean(np.minimum(regret, 40)), rel=0.2)
    assert parity.agreement >= parity.top1


def test_stored_answers_say_the_same_without_the_source(rng: np.random.Generator, tmp_path: Path) -> None:
    answers, source = make(rng)
    export = {name: x + rng.standard_normal(x.shape).astype(np.float32) for name, x in source.items()}
    answers.save(tmp_path / "answers.npz")
    kept = Answers.load(tmp_path / "answers.npz")
    whole, stored = judged(answers, export, source), judged(kept, export)
    assert kept.spread == answers.spread
    for name in ("n_tokens", "top1", "agreement", "perplexity", "perplexity_source", "greedy_equal", "regret"):
        assert getattr(stored, name) == getattr(whole, name), name
    assert 0.5 * whole.kl < stored.kl <= whole.kl  # the best tokens hold most of it, and never more than all
    assert stored.max_difference is stored.relative_difference is None
    assert "max_difference" not in stored.facts() and "max_difference" in whole.facts()


def test_answers_are_cut_to_what_a_format_can_hold(rng: np.random.Generator) -> None:
    answers, logits = make(rng)
    for limit, left in ((33, {"short": 9, "long": 20}), (16, {"short": 9, "long": 3}), (6, {"short": 6})):
        within = answers.within(limit)
        assert {name: len(text.top_ids) for name, text in within.texts.items()} == left
        assert all(len(run.prompt) + len(run.ids) <= limit for run in within.runs)
        cut = {name: logits[name][:n] for name, n in left.items()}
        parity = judged(within, cut, cut)
        assert parity.top1 == 1 and parity.n_tokens == sum(left.values()) and parity.kl < 1e-9
        texts = {name: within.texts[name].tokens for name in left}
        assert parity.perplexity == pytest.approx(perplexity(texts, cut), rel=1e-6)
    assert answers.within(6).runs[0].ids.tolist() == [7, 8] and not answers.within(4).runs


def test_damaged_answers(rng: np.random.Generator, tmp_path: Path) -> None:
    answers, _ = make(rng)
    answers.save(path := tmp_path / "answers.npz")
    whole = path.read_bytes()
    for damage in (b"", b"PK", whole[: len(whole) // 2], whole.replace(b"spread", b"sprout")):
        path.write_bytes(damage)
        with pytest.raises(ModelFileError, match="Export the model again"):
            Answers.load(path)


def test_greedy_answers_differ_from_the_first_other_token_on(rng: np.random.Generator) -> None:
    answers, logits = make(rng)
    tally = Tally(answers)
    for name, x in logits.items():
        tally.add_text(name, x)
    tally.add_answer(0, np.array([7, 8, 9]))
    tally.add_answer(1, np.array([7, 1, 2]))
    parity = tally.result()
    assert (parity.greedy_equal, parity.greedy_prompts, parity.greedy_first) == (1, 2, 1)
    assert parity.greedy_gap == pytest.approx(0.01)


def test_a_constant_added_to_all_logits_is_no_difference_of_distributions(rng: np.random.Generator) -> None:
    answers, source = make(rng)
    parity = judged(answers, {name: x + 7 for name, x in source.items()}, source)
    assert parity.max_difference == pytest.approx(7) and parity.relative_difference == pytest.approx(0, abs=1e-6)
    assert parity.kl == pytest.approx(0, abs=1e-6)
    assert Thresholds.for_weights(WeightForm("fp32"), "f32").problems(parity) == ()


WRONG = {
    "another model": lambda x, rng: rows(rng, len(x)),
    "rows one off": lambda x, rng: np.roll(x, 1, axis=0),
    "tokens one off": lambda x, rng: np.roll(x, 1, axis=1),
    "half as sure": lambda x, rng: x / 4,
    "not a number": lambda x, rng: np.full_like(x, np.nan),
    "infinite": lambda x, rng: np.full_like(x, np.inf),
    "all the same": lambda x, rng: np.zeros_like(x),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("with_source", [True, False])
def test_what_is_wrong_is_refused_whatever_the_weights(rng: np.random.Generator, name: str, with_source: bool) -> None:
    answers, source = make(rng)
    export = {text: WRONG[name](x, rng).astype(np.float32) for text, x in source.items()}
    parity = judged(answers, export, source if with_source else None)
    for stored in ("fp32", "fp16", "int8", "int4"):
        assert Thresholds.for_weights(WeightForm(stored), "int8").problems(parity), stored


@pytest.mark.parametrize(("noise", "accepted"), [(1e-4, "fp32"), (1e-2, "fp16"), (0.06, "int8"), (0.4, "int4")])
def test_each_kind_of_weights_has_its_own_room(rng: np.random.Generator, noise: float, accepted: Stored) -> None:
    answers, source = make(rng)
    export = {name: (x + noise * rng.standard_normal(x.shape)).astype(np.float32) for name, x in source.items()}
    parity = judged(answers, export, source)
    kinds: tuple[Stored, ...] = ("fp32", "fp16", "int8", "int4")
    for stored in kinds:
        problems = Thresholds.for_weights(WeightForm(stored), "f32").problems(parity)
        assert (problems == ()) == (kinds.index(stored) >= kinds.index(accepted)), (stored, problems)


def test_thresholds_follow_the_coarsest_matrix() -> None:
    int8, int4 = (Thresholds.for_weights(WeightForm(s), "f32") for s in ("int8", "int4"))
    assert Thresholds.for_weights(WeightForm("int8", output="int4"), "f32") == int4
    assert Thresholds.for_weights(WeightForm("fp16", embedding="int8"), "f32") == int8
    assert Thresholds.for_weights(None, "int8") == int8  # a file's own quantization adds nothing
    assert Thresholds.for_weights(None, "f32") == Thresholds.for_weights(WeightForm("fp32"), "int8")
    assert int8.agreement > int4.agreement and int8.kl < int4.kl


def test_a_threshold_can_be_lowered_by_name_only_to_a_share(rng: np.random.Generator) -> None:
    answers, source = make(rng)
    parity = dataclasses.replace(judged(answers, source, source), agreement=0.5)
    assert Thresholds.for_weights(WeightForm("int4"), "int8").problems(parity)
    lowered = Thresholds.for_weights(WeightForm("int4"), "int8", min_agreement=0.4)
    assert lowered.problems(parity) == () and Thresholds.of(lowered.facts()) == lowered
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(OptionError, match="between 0 and 1"):
            Thresholds.for_weights(WeightForm("int4"), "int8", min_agreement=share)


@pytest.mark.parametrize("name", ["kl", "relative_difference", "perplexity"])
@pytest.mark.parametrize("value", [1e6, math.nan])
def test_every_threshold_refuses_by_itself(rng: np.random.Generator, name: str, value: float) -> None:
    answers, source = make(rng)
    parity = dataclasses.replace(judged(answers, source, source), **{name: value})
    problems = Thresholds.for_weights(WeightForm("int4"), "int8").problems(parity)
    assert len(problems) == 1 and "at most" in problems[0]


def test_a_bundle_that_names_no_thresholds_cannot_be_judged() -> None:
    kept = SimpleNamespace(thresholds={"onnx": {"kl": 0.1}})
    for form in ("onnx", "gguf"):
        with pytest.raises(OptionError, match="export the model again"):
            thresholds_of(kept, form)  # type: ignore[arg-type]
