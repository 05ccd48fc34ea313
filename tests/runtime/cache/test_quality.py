"""A full cache that is dropped once a smaller one is known to say the same; drafts whose cache is as large as that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_runs import LATER, MORE, PROSE, SAMPLINGS, SMALL, WIDTHS, WRAPPED, Knows, Run, opened, prompt_for, run, small
from real_weights import smollm2
from small_models import need, tiny_file
from tiers import quick
from typer.testing import CliRunner

from pilotfish.apps.cli import app
from pilotfish.runtime.cache.agreement import ERROR, Agreement, overlap
from pilotfish.runtime.cache.policies import ChunkKV, KeyDiff, SinksAndWindow, SirLLM, SnapKV
from pilotfish.runtime.cache.quality_gate import QualityGatedCache
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.cache.shadow import ShadowCache, resized
from pilotfish.runtime.errors import AbilityError, ContextFullError, EngineError, OptionError
from pilotfish.runtime.interfaces import Distribution, Indices, Weights
from pilotfish.runtime.model.saved_chat import Conversation, read_conversation, write_conversation
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.runtime.speculation.proposers import SelfDraft
from pilotfish.testing.toy import ALL, SEEN, ToyWeights

__all__ = ["MORE", "opened"]


def distribution(*probs: float, ids: list[int] | None = None) -> Distribution:
    return Distribution(np.array(probs), None if ids is None else np.array(ids))


def test_overlap_is_one_minus_total_variation() -> None:
    forms = {
        "dense": distribution(0.5, 0.25, 0.25, 0.0),
        "sparse": distribution(0.5, 0.25, 0.25, ids=[0, 1, 2]),
    }
    others = {"dense": distribution(0.0, 0.5, 0.25, 0.25), "sparse": distribution(0.5, 0.25, 0.25, ids=[1, 2, 3])}
    for p in forms.values():
        for q in others.values():
            assert overlap(p, q) == overlap(q, p) == 0.5
        assert (
            overlap(p, p) == 1.0
            and overlap(p, Distribution.point(3)) == 0.0
            and overlap(Distribution.point(1), p) == 0.25
        )
    assert (
        overlap(Distribution.point(2), Distribution.point(2)) == 1.0
        and overlap(Distribution.point(2), Distribution.point(1)) == 0.0
    )


def test_bounds_hold_at_every_look() -> None:
    """Fewer than ERROR of many sequences are ever outside of them, however often one looks."""
    rng = np.random.default_rng(0)
    for chance in (0.5, 0.97):
        wrong = 0
        for _ in range(100):
            seen, hits = Agreement(), np.cumsum(rng.random(512) < chance)
            for n in (32, 64, 128, 256, 512):
                seen.total, seen.n = float(hits[n - 1]), n
                if not seen.at_least <= chance <= seen.at_most:
                    wrong += 1
                    break
        assert wrong <= 2 * ERROR * 100, "on either side"


def test_bounds_are_of_use() -> None:
    assert Agreement(0.0, 0).at_least == 0.0 and Agreement(0.0, 0).at_most == 1.0 and Agreement().mean is None
    assert 0.98 < Agreement(256.0, 256).at_least < 1.0
    assert Agreement(128.0, 128).at_least > 0.95 and Agreement(64.0, 64).at_least > 0.9
    assert Agreement(950.0, 1000).at_most < 0.98 and Agreement(970.0, 1000).at_least > 0.94
    assert Agreement(10.0, 32).at_most < 0.8


def gated(open_session: Any, policy: Any, quality: float, drops: bool = True) -> CachedSequence:
    mode = QualityGatedCache(open_session, WIDTHS, policy, quality, drops=drops)
    return CachedSequence(mode.session, WIDTHS, mode=mode)


def trial(weights: Weights, policy: Any, quality: float, drops: bool = True) -> CachedSequence:
    return gated(weights.session, policy, quality, drops)


def gate(sequence: CachedSequence) -> QualityGatedCache:
    assert isinstance(sequence.mode, QualityGatedCache)
    return sequence.mode


def states(done: Run) -> Iterator[Any]:
    yield done.sequence.session.positions
    for layer in range(done.sequence.session.info.n_layers):
        yield from (x.copy() for x in done.sequence.session.keys_values(layer))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("form", ["chain", "tree"])
@pytest.mark.parametrize("name", quick([*LATER, *WRAPPED], "sinks", "snapkv", "chunk-keydiff"))
@pytest.mark.parametrize(
    "engine", ["toy", "onnx"]
)  # one row class; numpy's bits follow the width, and knorm's ties them
def test_it_is_dropped_at_the_same_token_with_drafts_and_without(
    engine: str, name: str, form: str, sampling: str, opened: Callable[[str], Weights]
) -> None:
    weights, rule = opened(engine), SAMPLINGS[sampling]
    policy, prompt, quality = small(name, engine), prompt_for(weights), 0.00002  # so low that it is met soon
    plain = run(weights, policy, prompt, sampling=rule, n_new=150, sequence=trial(weights, policy, quality))
    knows = Knows(plain.tokens, form == "tree", weights.info.vocab_size)
    ours = run(
        weights, policy, prompt, sampling=rule, n_new=150, proposers=(knows,), sequence=trial(weights, policy, quality)
    )
    assert ours.tokens.tolist() == plain.tokens.tolist()
    assert len(ours.rounds) < 0.7 * len(plain.rounds), "drafts were hardly accepted: this proves nothing"
    here, there = (gate(done.sequence).report() for done in (ours, plain))
    near = replace(there, agreed=pytest.approx(there.agreed), at_least=pytest.approx(there.at_least, rel=1e-3))
    assert here == near and here.dropped_at is not None and 0 < here.dropped_at < 140
    assert here.at_least >= quality and len(ours.sequence.session.positions) <= here.budget + policy.every
    for a, b in zip(states(ours), states(plain), strict=True):
        assert np.array_equal(a, b) if engine == "toy" else np.allclose(a, b, atol=1e-4)
    full = run(weights, None, prompt, sampling=rule, n_new=150)
    at = len(prompt) + here.dropped_at
    assert ours.tokens[:at].tolist() == full.tokens[:at].tolist(), "until then it is the full cache's answer"
    assert ours.tokens.tolist() != full.tokens.tolist(), "the policy changed nothing: this proves nothing"


def test_what_is_compared_is_what_would_go_on(opened: Callable[[str], Weights]) -> None:
    """The overlap of every token, against a full and a compressed cache that are run by hand."""
    weights, rule = opened("reference"), SAMPLINGS["sampled"]
    policy, prompt = SinksAndWindow(**SMALL), prompt_for(weights)
    sequence = trial(weights, policy, 0.4)
    done = run(weights, None, prompt, sampling=rule, n_new=2 + policy.every * 2, sequence=sequence)
    session = weights.session(None)
    logits = session.forward(done.tokens, n_logits=len(done.tokens)).logits.copy()
    session.truncate(len(prompt) - 1)
    n, expected = len(prompt) - 1, 0.0
    kept = np.r_[0:2, n - 22 : n]
    for _ in range(2):
        session.keep(kept)
        block = session.forward(done.tokens[n : n + 8], n_logits=8).logits
        for i in range(8):
            p, q = (rule.distribution(x, done.tokens[: n + i + 1], len(prompt)) for x in (logits[n + i], block[i]))
            expected += overlap(p, q)
        n, kept = n + 8, np.r_[0:2, 10:32]
    report = gate(sequence).report()
    assert report.compared == 16 and report.agreed == pytest.approx(expected, abs=1e-3)
    assert 0.0 < report.agreed < 16.0 and report.dropped_at is None


def test_a_budget_that_is_too_small_is_doubled(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    sequence = trial(weights, SinksAndWindow(**SMALL), 0.9)
    done = run(weights, None, prompt_for(weights), n_new=400, sequence=sequence)
    report = gate(sequence).report()
    assert report.budget > 24 and report.budget % 48 == 0
    full = run(weights, None, prompt_for(weights), n_new=400)
    assert done.tokens.tolist() == full.tokens.tolist() and report.dropped_at is None


def test_another_text_brings_the_full_cache_back(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    policy, opened_sessions = SinksAndWindow(**SMALL), []

    def open_session(entries: int | None) -> Any:
        opened_sessions.append(weights.session(entries))
        return opened_sessions[-1]

    sequence = gated(open_session, policy, 0.002)
    first = run(weights, policy, prompt_for(weights), n_new=100, sequence=sequence)
    assert gate(sequence).report().dropped_at is not None and len(opened_sessions) == 1
    with pytest.raises(EngineError, match="closed"):
        opened_sessions[0].forward(np.array([1]), n_logits=0)  # closed: its memory is free
    turn = np.concatenate([first.tokens, prompt_for(weights, 20, seed=4)])
    again = run(weights, policy, turn, n_new=20, sequence=sequence)
    assert gate(sequence).report().dropped_at == 0 and len(opened_sessions) == 1 and again.most <= 32
    other = prompt_for(weights, 60, seed=8)
    anew = run(weights, policy, other, n_new=20, sequence=sequence)
    assert (
        len(opened_sessions) == 2
        and gate(sequence).report().dropped_at is None
        and gate(sequence).report().budget == 24
    )
    assert anew.tokens.tolist() == run(weights, None, other, n_new=20).tokens.tolist()


def held(weights: Weights, name: str, engine: str, quality: float, n_new: int, drafts: bool = True) -> Run:
    sequence = trial(weights, small(name, engine), quality, drops=False)
    rng = np.random.default_rng(5)
    prompt = prompt_for(weights)
    own = (SelfDraft(gate(sequence).shadow, Sampling(), len(prompt), rng, weights.info.vocab_size),) if drafts else ()
    return run(weights, None, prompt, n_new=n_new, proposers=own, sequence=sequence)


@pytest.mark.parametrize("name", quick(LATER, "sinks", "snapkv"))
@pytest.mark.parametrize("engine", ["toy", "reference", "onnx"])
def test_a_draft_cache_of_steered_size_changes_nothing(
    engine: str, name: str, opened: Callable[[str], Weights]
) -> None:
    """And its size follows from the answer: it is the same when nothing is drafted."""
    weights = opened(engine)
    plain = run(weights, None, prompt_for(weights), n_new=200)
    ours, idle = (held(weights, name, engine, 0.5, 200, drafts) for drafts in (True, False))
    assert ours.tokens.tolist() == idle.tokens.tolist() == plain.tokens.tolist()
    assert sum(r.drafted for r in ours.rounds) > 20
    here, there = (gate(done.sequence).report() for done in (ours, idle))
    assert (here.budget, here.compared, here.agreed) == (there.budget, there.compared, pytest.approx(there.agreed))
    assert len(ours.sequence.session.positions) == len(ours.tokens) - 1, "the full cache lost an entry"


def test_the_size_grows_and_shrinks(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    strict, lax = (gate(held(weights, "sinks", "toy", quality, 300).sequence).report() for quality in (0.95, 0.002))
    assert strict.budget > 24 > lax.budget >= 8
    assert lax.dropped_at is None is strict.dropped_at


def test_a_budget_that_was_too_little_is_not_tried_again() -> None:
    weights: Any = ToyWeights(vocab_size=17, context_length=512, abilities=ALL | SEEN)
    shadow = gate(trial(weights, SinksAndWindow(budget=64, every=8, window=6, sinks=2), 0.5, drops=False)).shadow
    asked: list[int] = []
    for share in (1.0, 0.0, 1.0, 1.0, 1.0):
        asked.append(shadow.policy.budget)
        shadow.agreement.total, shadow.agreement.n = share * 64, 64
        held = shadow.agreement.at_least >= shadow.quality
        if held:
            shadow._shrink()
        else:
            shadow._too_small = shadow.policy.budget
            shadow._resize(2 * shadow.policy.budget)
    assert asked == [64, 32, 64, 64, 64]


def test_resized() -> None:
    assert resized(SnapKV(budget=100), 200) == SnapKV(budget=200)
    chunks: Any = resized(ChunkKV(scorer=KeyDiff(budget=100), size=10), 50)
    assert chunks == ChunkKV(scorer=KeyDiff(budget=50), size=10) and chunks.budget == 50
    with pytest.raises(OptionError, match="cannot hold"):
        resized(SnapKV(budget=100), 20)


class NoDataclass:
    """A policy whose budget is fixed."""

    name, needs, budget, every, window, rows, spare = "fixed", frozenset({"evict_tokens"}), 24, 8, 6, 0, 0
    restart = None

    def select(self, view: Any) -> Indices:
        raise AssertionError


def test_what_cannot_be_done_is_refused(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    blind: Any = ToyWeights(vocab_size=5, context_length=64, abilities=ALL - {"fork"})
    policy = SinksAndWindow(**SMALL)
    for where, which, quality, error, words in (
        (weights, policy, 1.0, OptionError, "between 0 and 1"),
        (weights, policy, 0.0, OptionError, "between 0 and 1"),
        (weights, SirLLM(**SMALL), 0.9, OptionError, "watches every token"),
        (weights, NoDataclass(), 0.9, OptionError, "no dataclass"),
        (blind, policy, 0.9, AbilityError, "quality= with the sinks cache policy needs fork"),
    ):
        with pytest.raises(error, match=words):
            trial(where, which, quality)
    with pytest.raises(OptionError, match="max_context=65 or more, or a smaller budget"):
        gated(lambda entries: weights.session(entries or 64), policy, 0.9)
    sequence = trial(weights, policy, 0.9)
    assert isinstance(gate(sequence).shadow, ShadowCache) and sequence.nbytes == sequence.session.nbytes


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("engine", quick(["toy", "reference", "onnx"], "toy"))
@pytest.mark.parametrize(
    ("quality", "drops"), [(0.00002, True), (0.9, True), (0.3, False)], ids=["dropped", "on trial", "drafting"]
)
def test_a_saved_trial_goes_on(
    quality: float, drops: bool, engine: str, sampling: str, tmp_path: Path, opened: Callable[[str], Weights]
) -> None:
    weights, rule, policy = opened(engine), SAMPLINGS[sampling], small("sinks", engine)
    begun = trial(weights, policy, quality, drops)
    first = run(weights, policy, prompt_for(weights), sampling=rule, n_new=100, sequence=begun)
    known = gate(begun).report()
    assert known.compared or known.budget > policy.budget, "nothing is known yet: this proves nothing"
    agrees = engine == "toy" or sampling != "greedy"  # the most probable token of random weights is never the same
    assert (known.dropped_at is not None) == (quality < 0.3 and agrees)
    write_conversation(tmp_path / "talk", Conversation([], None, {}, first.sequence.save()))
    longer = np.concatenate([first.tokens, prompt_for(weights, 30, seed=4)])
    expected = run(weights, policy, longer, sampling=rule, n_new=100, sequence=first.sequence)
    for before in (0, 150):  # what was there before: the full cache, empty, or a small one
        other = trial(weights, policy, quality, drops)
        if before:
            run(weights, policy, prompt_for(weights, 60, seed=8), sampling=rule, n_new=before, sequence=other)
        other.restore(read_conversation(tmp_path / "talk").sequence)
        resumed = run(weights, policy, longer, sampling=rule, n_new=100, sequence=other)
        assert resumed.tokens.tolist() == expected.tokens.tolist()
        ours, theirs = (gate(x.sequence).report() for x in (resumed, expected))
        if drops:  # a shadow that drafts decides nothing, and begins anew
            assert replace(ours, kv_bytes=0) == replace(theirs, kv_bytes=0)
            assert resumed.sequence.session.positions.tolist() == expected.sequence.session.positions.tolist()
        other.close()


def test_a_trial_that_does_not_fit_changes_nothing(opened: Callable[[str], Weights]) -> None:
    weights, policy = opened("toy"), small("sinks", "toy")
    full = run(weights, policy, prompt_for(weights, 200), n_new=20, sequence=trial(weights, policy, 0.9)).sequence
    narrow = gated(lambda entries: weights.session(entries or 128), policy, 0.00002)
    run(weights, policy, prompt_for(weights, 40), n_new=70, sequence=narrow)
    held, known = narrow.session, gate(narrow).report()
    assert narrow.mode.bounded
    with pytest.raises(ContextFullError):
        narrow.restore(full.save())
    assert narrow.session is held and narrow.mode.bounded and gate(narrow).report() == known
    assert run(weights, policy, narrow.tokens.copy(), n_new=4, sequence=narrow).rounds


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tiny_file(tmp_path_factory.mktemp("models"), 1024)


PROMPT = "the cat and the dog and the hen in the pen " * 4
# Distributions this flat overlap by two thirds on every machine. Which tokens are the most probable ones of random
# weights, and
# how often two caches agree on them, is for the last bits to say.
FLAT: dict[str, Any] = {"temperature": 2.0, "seed": 1}


@pytest.mark.parametrize("engine", ["onnx", "openvino", "llamacpp"])
def test_on_any_engine(engine: str, model_file: Path) -> None:
    import pilotfish

    need(engine)
    settings = "sinks:budget=64,every=32,window=24"
    with (
        pilotfish.load(model_file, engine, cache=settings, quality=0.1, threads=1) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4)) as drafting,
    ):
        theirs = plain.generate(PROMPT, max_new_tokens=96, **FLAT)
        stream = drafting.stream(PROMPT, max_new_tokens=96, **FLAT)
        live = [stream.trial for _ in stream]
        ours = stream.result
        assert ours is not None and ours.token_ids == theirs.token_ids and ours.stats.drafted > 0
        assert ours.stats.trial is not None and theirs.stats.trial is not None and stream.trial == ours.stats.trial
        at = ours.stats.trial.dropped_at
        assert at is not None and replace(ours.stats.trial, kv_bytes=0) == replace(theirs.stats.trial, kv_bytes=0)
        before = next(x for x in live if x is not None and x.dropped_at is None)
        assert before.kv_bytes > ours.stats.trial.kv_bytes == ours.stats.kv_bytes, "no memory was given back"
        assert ours.stats.kv_entries <= 96 < ours.stats.n_prompt + ours.stats.n_tokens
        assert json.loads(json.dumps(ours.stats.as_dict()))["trial"]["dropped_at"] == at


@pytest.mark.parametrize("quality", [0.1, 0.98])
def test_a_conversation_is_kept_with_what_was_found(quality: float, model_file: Path, tmp_path: Path) -> None:
    import pilotfish

    # Without drafts: steps of other widths give this engine other last bits, and what was found is compared to the bit.
    settings = {"cache": "sinks:budget=64,every=32,window=24", "threads": 1, "speculate": False}
    file = tmp_path / "talk"
    with pilotfish.load(model_file, "reference", quality=quality, **settings) as model:  # type: ignore[arg-type]
        chat = model.chat(seed=FLAT["seed"])
        first = chat.send(PROMPT * 3, max_new_tokens=96, temperature=FLAT["temperature"]).stats.trial
        assert first is not None and (first.dropped_at is not None) == (quality < 0.5)
        chat.save(file)
        expected = chat.send("the hen", max_new_tokens=40, temperature=FLAT["temperature"])
    with pilotfish.load(model_file, "reference", quality=quality, **settings) as model:  # type: ignore[arg-type]
        ours = model.resume(file).send("the hen", max_new_tokens=40, temperature=FLAT["temperature"])
    assert ours.token_ids == expected.token_ids and ours.stats.trial == expected.stats.trial
    assert ours.stats.n_reused == expected.stats.n_reused
    with pilotfish.load(model_file, "reference", **settings) as model, pytest.raises(OptionError, match="at quality"):  # type: ignore[arg-type]
        model.resume(file)


def test_the_arguments_are_checked(model_file: Path) -> None:
    import pilotfish

    for arguments, words in (
        ({"quality": 0.9}, "give cache= a policy"),
        ({"quality": "auto"}, "give cache= a policy"),
        ({"quality": "much", "cache": "sinks"}, "between 0 and 1 .* or auto"),
        ({"quality": 2, "cache": "sinks:budget=64,every=32"}, "between 0 and 1"),
        ({"quality": 0.9, "cache": "sirllm:budget=64,every=32"}, "watches every token"),
    ):
        with pytest.raises(OptionError, match=words):
            pilotfish.load(model_file, "reference", **arguments)  # type: ignore[arg-type]


def test_the_command_line_says_what_happened(model_file: Path) -> None:
    pytest.importorskip("onnxruntime")
    command = ["run", str(model_file), PROMPT, "--engine", "onnx", "--threads", "1", "-n", "96"]
    flat = ["--temperature", str(FLAT["temperature"]), "--seed", str(FLAT["seed"])]
    compressed = [*command, "--cache", "sinks:budget=64,every=32,window=24"]
    done = CliRunner().invoke(app, [*compressed, *flat, "--quality", "0.1"])
    assert done.exit_code == 0 and "full cache dropped after" in " ".join(done.stderr.split())
    kept = CliRunner().invoke(app, [*compressed, *flat, "--quality", "auto", "--json"])
    found = json.loads(kept.stdout)["trial"]
    assert found["quality"] == 0.98 and found["dropped_at"] is None
    held = CliRunner().invoke(app, [*command, "--draft", "self:sinks:budget=64,every=32,window=24", "--quality", "0.5"])
    assert held.exit_code == 0 and "the full cache is kept" in " ".join(held.stderr.split())
    wrong = CliRunner().invoke(app, [*command, "--quality", "0.9"])
    assert wrong.exit_code != 0


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("cache", ["sinks:budget=256,every=64", "snapkv:budget=256,every=64"])
def test_on_real_weights(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    import pilotfish

    pytest.importorskip("onnxruntime")
    with (
        pilotfish.load(smollm2(), "onnx", cache=cache, quality=0.6, threads=2) as model,
        model.sibling(policy=None) as plain,
    ):
        prompt = PROSE * 8 + "Continue this story, at length."
        ours, theirs = (m.generate(prompt, max_new_tokens=200, stop=()) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids, "one row class: no near-tie is excused"
        assert ours.stats.trial == theirs.stats.trial and ours.stats.trial is not None
        with capsys.disabled():
            print(f"\n{cache}: {ours.stats.trial}")
