"""Promises on real weights (SmolLM2-135M-Instruct): right answers, and the same tokens with and without drafts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_files import imported
from real_weights import PROMPTS, smollm2

import pilotfish
from pilotfish.backends import get
from pilotfish.exporters.onnx.import_model import Activations
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits, generate
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Tokens, Weights
from pilotfish.runtime.profiling.row_classes import ANY_WIDTH
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import Suffix

pytestmark = pytest.mark.real

N_TOKENS = 200


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    opened = onnx("int8")
    yield opened
    opened.close()


def onnx(activations: Activations) -> Weights:
    folder = imported(smollm2(), activations=activations)
    return get("onnx").open(open_model(folder), device=None, threads=2, kv_dtype=None)


@pytest.fixture(scope="module")
def plain() -> Iterator[pilotfish.Model]:
    with pilotfish.load(smollm2(), speculate=False, max_context=1024, threads=2, narrow=True) as model:
        yield model


@pytest.fixture(scope="module")
def plain_tokens(plain: pilotfish.Model) -> dict[str, tuple[int, ...]]:
    """What plain decoding answers to every prompt."""
    made = {}
    for name, prompt in PROMPTS.items():
        result = plain.generate(prompt, max_new_tokens=N_TOKENS)
        assert result.stats.accepted == result.stats.drafted == 0
        made[name] = tuple(result.token_ids)
    return made


def excerpt(plain: pilotfish.Model, n: int) -> Tokens:
    """Tokens of prompts, one after another."""
    tokens = np.concatenate([plain.encode(PROMPTS[name]) for name in ("code 3", "copy 1", "code 1")])
    assert len(tokens) >= n
    return tokens[:n]


def relative_error(ours: Floats, theirs: Floats) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.fixture(scope="module")
def judged(plain: pilotfish.Model) -> tuple[Tokens, Floats]:
    tokens = excerpt(plain, 96)
    reference = get("reference").open(open_model(smollm2()), device=None, threads=2, kv_dtype=None)
    return tokens, reference.session(128).forward(tokens, n_logits=len(tokens)).logits


def test_with_f32_activations_the_graph_is_the_model(
    judged: tuple[Tokens, Floats], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))  # a bundle nobody else wants
    tokens, theirs = judged
    weights = onnx("f32")
    ours = weights.session(128).forward(tokens, n_logits=len(tokens)).logits
    weights.close()
    assert relative_error(ours, theirs) < 2e-5
    assert np.array_equal(ours.argmax(axis=-1), theirs.argmax(axis=-1))


def test_with_int8_activations_it_is_near(judged: tuple[Tokens, Floats], weights: Weights) -> None:
    tokens, theirs = judged
    ours = weights.session(128).forward(tokens, n_logits=len(tokens)).logits
    error = relative_error(ours, theirs)
    agreement = float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean())
    print(f"int8 activations: relative error {error:.3f}, greedy agreement {agreement:.2f}")
    assert 1e-3 < error < 0.08
    assert agreement > 0.85


def test_drafts_change_no_token(plain_tokens: dict[str, tuple[int, ...]]) -> None:
    """With steps as narrow as the text allows, on every prompt: no near-tie is excused."""
    drafted = accepted = 0
    with pilotfish.load(smollm2(), max_context=1024, threads=2, narrow=True) as model:
        assert model.exact
        for name, prompt in PROMPTS.items():
            result = model.generate(prompt, max_new_tokens=N_TOKENS)
            assert tuple(result.token_ids) == plain_tokens[name], name
            drafted, accepted = drafted + result.stats.drafted, accepted + result.stats.accepted
    n_tokens = sum(map(len, plain_tokens.values()))
    print(f"{n_tokens} tokens, {drafted} drafted, {accepted} accepted")
    assert n_tokens > 2000 and accepted > n_tokens // 10


@pytest.mark.usefixtures("real_clock")
@pytest.mark.parametrize("k", [3, 15])
def test_long_drafts_change_no_token_of_wide_steps(k: int) -> None:
    """Whether they pay or not: widths up to 16, many of them rejected."""
    accepted = 0
    with (
        pilotfish.load(smollm2(), speculate=Fixed(k), max_context=1024, threads=2, narrow=False) as model,
        model.sibling(policy=None) as plain,
    ):
        for name in ("copy 1", "code 1", "chat 1", "list 1", "list 5"):
            result = model.generate(PROMPTS[name], max_new_tokens=N_TOKENS)
            assert result.token_ids == plain.generate(PROMPTS[name], max_new_tokens=N_TOKENS).token_ids, name
            assert max(r.width for r in result.rounds) == k + 1
            accepted += result.stats.accepted
    assert accepted > 100


def test_a_conversation_is_the_same_with_and_without_drafts(plain: pilotfish.Model) -> None:
    """Turns reuse the cache that drafts were verified in."""
    questions = ("List five birds.", "Repeat the list in upper case.", "Which of them can swim?")
    with pilotfish.load(smollm2(), max_context=1024, threads=2, narrow=True) as model:
        chats = [model.chat(), plain.chat()]
        for question in questions:
            ours, theirs = (chat.send(question, max_new_tokens=80) for chat in chats)
            assert ours.token_ids == theirs.token_ids, question
        assert ours.stats.n_reused > 50


def gap(logits: Floats) -> float:
    """How far the best token is ahead of the second best."""
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def width_noise(weights: Weights, tokens: Tokens) -> float:
    """Largest change of the gap between the two best tokens when a token is run in a step of another width."""
    found = []
    for width in (1, 2, 8):
        session = weights.session(len(tokens))
        steps = np.split(tokens, len(tokens) // width)
        found.append(np.concatenate([session.forward(step, n_logits=width).logits.copy() for step in steps]))
        session.close()
    best = np.argsort(found[1], axis=-1)[:, -2:]
    gaps = [np.diff(np.take_along_axis(logits, best, axis=-1))[:, 0] for logits in found]
    return float(max(np.abs(gaps[0] - gaps[1]).max(), np.abs(gaps[2] - gaps[1]).max()))


def test_trees_differ_only_at_near_ties(
    plain: pilotfish.Model, plain_tokens: dict[str, tuple[int, ...]], weights: Weights
) -> None:
    """A tree is another order of summation, so a token may differ where two were as good as equal, and only there."""
    noise = width_noise(weights, excerpt(plain, 120))
    near_ties, branched, accepted, gaps = 0, 0, 0, []
    for name in ("copy 2", "code 2", "chat 5", "list 2", "list 3", "list 6"):
        prompt = plain.encode(PROMPTS[name])
        expected = plain_tokens[name][:120]
        target = CachedSequence(weights.session(1024))
        drafting = Drafting(Fixed(6), plain.calibration.curve, ANY_WIDTH)
        limits = Limits(max_new_tokens=len(expected))
        rounds = list(
            generate(
                target,
                prompt,
                sampling=Sampling(),
                drafting=drafting,
                proposers=(Suffix(branches=2),),
                limits=limits,
                rng=np.random.default_rng(0),
            )
        )
        tokens = tuple(token for done in rounds for token in done.tokens)
        branched += sum(done.drafted > 1 for done in rounds)
        accepted += sum(done.accepted for done in rounds)
        differ = next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), None)
        if differ is not None:
            near_ties += 1
            context = np.concatenate([prompt, np.array(expected[:differ], dtype=np.int64)])
            session = weights.session(1024)
            gaps.append(gap(session.forward(context, n_logits=2).logits[-1]))
            session.close()
        target.session.close()
    print(f"{near_ties} of 6 answers left at a near-tie, gaps {np.round(gaps, 2)}, width noise {noise:.2f}")
    assert branched > 50 and accepted > 100
    assert all(g < noise for g in gaps)
