"""Promise 1 under compression: with a cache policy, output with drafts is output without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_runs import (  # noqa: F401 - fixtures
    ALL_WRAPPED,
    N_PROMPT,
    PROSE,
    SAMPLINGS,
    SMALL,
    WIDTHS,
    WRAPPED,
    Knows,
    Run,
    opened,
    prompt_for,
    run,
    small,
)
from real_weights import smollm2
from small_models import need, tiny_file

from pilotfish.backends import get
from pilotfish.runtime.cache.compression import CompressedCache
from pilotfish.runtime.cache.policies import CachePolicy, CacheView, KeyDiff, SinksAndWindow, SirLLM, SnapKV
from pilotfish.runtime.cache.policies.by_name import POLICIES, SCORERS, WRAPPERS
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.errors import AbilityError, EngineError
from pilotfish.runtime.interfaces import Indices, Weights
from pilotfish.runtime.model.model import Model
from pilotfish.runtime.profiling.row_classes import RowRule
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

ENGINES = ("toy", "reference", "onnx")


NAMES = [*POLICIES, *WRAPPED, *(pytest.param(n, marks=pytest.mark.slow) for n in ALL_WRAPPED if n not in WRAPPED)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("form", ["chain", "tree"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ENGINES)
def test_drafts_change_nothing(
    engine: str, name: str, form: str, sampling: str, opened: Callable[[str], Weights]
) -> None:
    weights = opened(engine)
    policy, prompt, distribution = small(name, engine), prompt_for(weights), SAMPLINGS[sampling]
    plain = run(weights, policy, prompt, sampling=distribution)
    knows = Knows(plain.tokens, form == "tree", weights.info.vocab_size)
    drafted = run(weights, policy, prompt, proposers=(knows,), sampling=distribution)
    assert drafted.tokens.tolist() == plain.tokens.tolist()
    assert len(drafted.rounds) < 0.6 * len(plain.rounds), "drafts were hardly accepted: this proves nothing"
    assert plain.most <= policy.budget + policy.every
    assert drafted.most <= policy.budget + policy.every
    for a, b in zip(positions_and_keys(plain), positions_and_keys(drafted), strict=True):
        assert np.array_equal(a, b) if engine == "toy" else np.allclose(a, b, atol=1e-4)
    full = run(weights, None, prompt, sampling=distribution)
    assert full.tokens.tolist() != plain.tokens.tolist(), "the policy changed nothing: this proves nothing"


def positions_and_keys(done: Run) -> Iterator[np.ndarray[Any, Any]]:
    yield done.sequence.session.positions
    for layer in range(done.sequence.session.info.n_layers):
        yield from (x.copy() for x in done.sequence.session.keys_values(layer))


def test_a_draft_that_crosses_a_compression_is_found(
    opened: Callable[[str], Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache compressed at the end of the round that fills it is right without drafts and wrong with them."""
    weights = opened("toy")
    prompt, policy = prompt_for(weights), SinksAndWindow(**SMALL)
    plain = run(weights, policy, prompt)

    def at_the_end_of_a_round(target: CachedSequence) -> float:
        n, due = len(target.tokens), target.next_compression
        if due is not None and n >= due:
            entries = policy.select(CacheView(target.session, target.tokens[:0]))
            target.mode = CompressedCache(policy, target.session, WIDTHS, covered=(n, n - len(entries)))
            target.session.keep(entries)
        return 0.0

    monkeypatch.setattr("pilotfish.runtime.decoding.loop._compress", at_the_end_of_a_round)
    monkeypatch.setattr("pilotfish.runtime.decoding.loop._room", lambda target, n, end: min(end - n - 1, 8))
    assert run(weights, policy, prompt).tokens.tolist() == plain.tokens.tolist()
    knows = Knows(plain.tokens, False, weights.info.vocab_size)
    assert run(weights, policy, prompt, proposers=(knows,)).tokens.tolist() != plain.tokens.tolist()


class ForgetsTheWindow(SinksAndWindow):
    """Keeps the oldest entries instead of the last ones."""

    __slots__ = ()

    def select(self, view: Any) -> Indices:
        return np.arange(self.budget)


def test_a_policy_that_gives_up_its_window_is_refused(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    with pytest.raises(EngineError, match="gave up some of the last 6 entries"):
        run(weights, ForgetsTheWindow(**SMALL), prompt_for(weights))


class CountsItsCalls(SinksAndWindow):
    """Looks at something else than the cache: how often the session was run."""

    __slots__ = ()

    def select(self, view: Any) -> Indices:
        n, odd = view.n_entries, view.session.n_forward % 5
        return np.concatenate([np.arange(odd), np.arange(n - self.budget + odd, n)])


def test_a_policy_that_looks_elsewhere_is_found(opened: Callable[[str], Weights]) -> None:
    weights = opened("toy")
    policy, prompt = CountsItsCalls(**SMALL), prompt_for(weights)
    plain = run(weights, policy, prompt)
    drafted = run(weights, policy, prompt, proposers=(Knows(plain.tokens, False, 17),))
    assert drafted.tokens.tolist() != plain.tokens.tolist()


@pytest.mark.parametrize("name", ["sinks", "sirllm", "snapkv", "h2o"])
def test_a_cache_depends_on_its_tokens_alone(name: str, opened: Callable[[str], Weights]) -> None:
    """Not on which of them were prompt, nor in how many turns they came: a later turn may go on where one ended."""
    weights = opened("toy")
    policy = small(name, "toy")
    first = run(weights, policy, prompt_for(weights))
    at = first.sequence.mode.fixed
    for cut in (at, at + 1, len(first.tokens) - 1):  # behind the last compression: what was run stays
        longer = np.concatenate([first.tokens[:cut], prompt_for(weights, 30, seed=cut)])
        again = run(weights, policy, first.tokens[:N_PROMPT])
        before = again.sequence.session.n_forward  # type: ignore[attr-defined]
        assert again.sequence.reusable(longer) >= at
        reused = run(weights, policy, longer, sequence=again.sequence)
        anew = run(weights, policy, longer)
        assert reused.tokens.tolist() == anew.tokens.tolist()
        spent = again.sequence.session.n_forward - before  # type: ignore[attr-defined]
        assert spent < anew.sequence.session.n_forward  # type: ignore[attr-defined]
    earlier = np.concatenate([first.tokens[: at - 1], prompt_for(weights, 30, seed=9)])
    assert first.sequence.reusable(earlier) == 0  # what was evicted cannot come back
    reused = run(weights, policy, earlier, sequence=first.sequence)
    assert reused.tokens.tolist() == run(weights, policy, earlier).tokens.tolist()


@pytest.mark.parametrize("name", ["sinks", "keydiff", "snapkv"])
def test_a_context_may_be_longer_than_the_cache(name: str, opened: Callable[[str], Weights]) -> None:
    weights = opened("reference")
    policy, prompt = small(name, "reference"), prompt_for(weights, 300)
    done = run(weights, policy, prompt, n_new=512 - 33 - 300)
    assert done.sequence.session.max_context == 24 + 8 + 33
    assert len(done.tokens) == 479 and done.most <= 32
    one = done.sequence.session.nbytes / len(done.sequence.session.positions)
    assert done.sequence.session.nbytes <= one * 65


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Model]]:
    """The tiny model on an engine that opens files of its own, with all that it lets be seen."""
    import pilotfish

    sizes = Sizes(hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, context=1024)
    path = tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q8_0", sizes=sizes, seed=10)
    made: dict[str, Model] = {}

    def load(engine: str) -> Model:
        if get(engine).version() is None:
            pytest.skip(f"{engine} is not installed")
        if engine not in made:
            options = {"flash_attention": "off"} if engine == "llamacpp" else {}
            made[engine] = pilotfish.load(path, engine, options=options, threads=1)
        return made[engine]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load
        for model in made.values():
            model.close()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["openvino", "llamacpp"])
def test_every_policy_on_every_other_engine(
    engine: str, name: str, sampling: str, loaded: Callable[[str], Model]
) -> None:
    """Runs, with chains and with trees where the engine has them, or is refused because an ability is missing."""
    model, distribution, policy = loaded(engine), SAMPLINGS[sampling], small(name, "toy")
    weights, rule = model.target, model.calibration.rows.rule()
    abilities = weights.session(64).abilities
    lacks = policy.needs - abilities - {"attention"}
    sees = "attention" in abilities and policy.rows is not None and "queries" not in policy.needs
    if lacks or ("attention" in policy.needs and not sees and not {"queries", "keys"} <= abilities):
        with pytest.raises(AbilityError, match=r"cache policy needs .*use another engine"):
            CachedSequence(weights.session(256), rule, policy)
        return
    prompt = prompt_for(weights)
    plain = run(weights, policy, prompt, sampling=distribution, rows=rule)
    for tree in (False, True) if "tree" in abilities else (False,):
        knows, rows = Knows(plain.tokens, tree, weights.info.vocab_size), RowRule(rule.widths, trees=True)
        drafted = run(weights, policy, prompt, proposers=(knows,), sampling=distribution, rows=rows)
        assert max(plain.most, drafted.most) <= policy.budget + policy.every
        assert drafted.tokens.tolist() == plain.tokens.tolist(), f"as a {'tree' if tree else 'chain'}"
        assert len(drafted.rounds) < 0.8 * len(plain.rounds), "drafts were hardly accepted: this proves nothing"


EVERYWHERE = [
    ("openvino", "sinks", {}),
    ("openvino", "sirllm", {}),
    ("openvino", "snapkv:per_head=false", {}),
    ("openvino", "chunk-keydiff", {}),
    ("openvino", "expected:per_head=false", {}),
    ("openvino", "chunk-kvzip:chunk=40", {}),
    ("llamacpp", "sinks", {}),
    ("llamacpp", "sirllm", {}),
    ("llamacpp", "chunk-snapkv", {"flash_attention": "off"}),
    ("llamacpp", "tova:per_head=false", {"flash_attention": "off"}),
    ("llamacpp", "crush-snapkv:size=8,share=0.4", {"flash_attention": "off"}),
    ("llamacpp", "threshold-snapkv:threshold=0.005", {"flash_attention": "off"}),
    ("onnx", "snapkv", {}),
    ("onnx", "critical-expected:value_norm=false", {}),
]


@pytest.mark.parametrize(("engine", "name", "options"), EVERYWHERE)
def test_drafts_change_nothing_on_any_engine(
    engine: str, name: str, options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pilotfish

    need(engine)
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_file(tmp_path, 1024)
    settings = f"{name}{',' if ':' in name else ':'}budget=64,every=32,window=24"
    prompt = "the cat and the dog and the hen in the pen " * 4
    with (
        pilotfish.load(path, engine, cache=settings, options=options, threads=1) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4)) as drafting,
    ):
        theirs, ours = (m.generate(prompt, max_new_tokens=64) for m in (plain, drafting))
        assert ours.token_ids == theirs.token_ids and len(ours.token_ids) > 5
        assert ours.stats.drafted > 0
        for done in (ours, theirs):
            assert done.stats.kv_entries <= 96 < done.stats.n_prompt + done.stats.n_tokens


def test_nothing_registered_is_left_out() -> None:
    named = {n if isinstance(n, str) else str(n.values[0]) for n in NAMES}
    assert {*POLICIES} <= named and all(any(n.startswith(prefix) for n in named) for prefix in WRAPPERS)
    for scorer in SCORERS:
        assert f"chunk-{scorer}" in named, "chunks take every scorer"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", [SinksAndWindow(budget=256), KeyDiff(budget=256), SnapKV(budget=256), SirLLM(budget=256)]
)
@pytest.mark.parametrize(
    "question", ["Repeat the first sentence.", "Summarise this in one sentence.", "Who promised what?"]
)
def test_drafts_change_nothing_on_real_weights(policy: CachePolicy, question: str) -> None:
    import pilotfish

    pytest.importorskip("onnxruntime")
    with (
        pilotfish.load(smollm2(), "onnx", cache=policy, threads=2) as model,
        model.sibling(policy=None) as plain,
    ):
        prompt = PROSE * 14 + question
        assert 900 < len(model.encode(prompt)) < 1400
        ours, theirs = (m.generate(prompt, max_new_tokens=120) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids
        assert len(ours.token_ids) > 5 and ours.stats.accepted > 0
        one = 2 * model.info.n_layers * model.info.kv_heads * model.info.head_dim * 4
        for done in (ours, theirs):
            assert done.stats.kv_entries <= 512 and done.stats.kv_bytes <= (512 + 33) * one


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "cache"),
    [
        ("openvino", "sinks:budget=256,every=64"),
        ("openvino", "chunk-keydiff:budget=256,every=64"),
        ("llamacpp", "sinks:budget=256,every=64"),
        ("llamacpp", "sirllm:budget=256,every=64"),
    ],
)
def test_drafts_change_nothing_on_real_weights_of_other_engines(engine: str, cache: str) -> None:
    import pilotfish

    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    with (
        pilotfish.load(smollm2(), engine, cache=cache, threads=2) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(3)) as drafted,
    ):
        prompt = PROSE * 8 + "Who promised what?"
        ours, theirs = (m.generate(prompt, max_new_tokens=96) for m in (drafted, plain))
        assert ours.token_ids == theirs.token_ids, "one row class: no near-tie is excused"
        assert ours.stats.drafted > 0 and ours.stats.kv_entries <= 320
