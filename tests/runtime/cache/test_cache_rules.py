"""Policies that look ahead, repeat the text or wrap others, against a slow reading of each rule on random arrays."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_weights import smollm2

from pilotfish.runtime.cache.compression import entries_for
from pilotfish.runtime.cache.policies import (
    H2O,
    CachePolicy,
    CacheView,
    ChunkKV,
    CriticalKV,
    ExpectedAttention,
    KeyDiff,
    Knorm,
    KVCrush,
    KVzip,
    LagKV,
    SinksAndWindow,
    SnapKV,
    ThresholdBudget,
    Tova,
    policy_by_name,
)
from pilotfish.runtime.cache.policies.rotation import measured_frequencies
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.scoring import surprisal
from pilotfish.runtime.errors import AbilityError, OptionError
from pilotfish.runtime.interfaces import Floats, Indices, Step, Tokens, Weights
from pilotfish.runtime.profiling.row_classes import RowRule

LAYERS, KV_HEADS, GROUP, DIM = 2, 2, 2, 8
SHAPE: dict[str, Any] = {"budget": 24, "every": 12, "sinks": 2, "window": 6}
MOST = 1.25  # times the perplexity of sinks and window
FREQUENCIES = 100.0 ** (-np.arange(0, DIM, 2) / DIM)
SEEDS = st.integers(0, 10_000)
MANY = settings(max_examples=25)


class Cache:
    """A session of random keys and values, whose queries depend on token and layer and turn with their position."""

    def __init__(self, seed: int, tokens: Tokens, part: int = 0) -> None:
        self.seed, self.part = seed, part
        self.info: Any = SimpleNamespace(
            n_layers=LAYERS, kv_heads=KV_HEADS, n_heads=KV_HEADS * GROUP, head_dim=DIM, engine="fake"
        )
        self.context: Tokens = np.empty(0, dtype=np.int64)
        self.run(tokens)

    def run(self, tokens: Tokens) -> None:
        self.context = np.concatenate([self.context, tokens])

    def drawn(self, kind: int, layer: int, heads: int) -> Floats:
        """(heads, n, head_dim)"""
        rows = [np.random.default_rng([self.seed, kind, layer, t]).normal(size=(heads, DIM)) for t in self.context]
        return np.array(rows, dtype=np.float32).reshape(-1, heads, DIM).swapaxes(0, 1)

    def plain(self, layer: int) -> Floats:
        return self.drawn(0, layer, KV_HEADS * GROUP) * 2.0 + self.drawn(0, layer + 9, KV_HEADS * GROUP)[:, :1]

    def queries(self, layer: int) -> Floats:
        turned = np.stack([head_turned(q, self.positions, self.part) for q in self.plain(layer)])
        return turned.astype(np.float32)

    @property
    def positions(self) -> Indices:
        return np.arange(len(self.context))

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        keys = np.stack([head_turned(k, self.positions, 0) for k in self.drawn(1, layer, KV_HEADS)])
        return keys.astype(np.float32), self.drawn(2, layer, KV_HEADS)

    def fork(self, entries: Indices, max_context: int) -> Cache:
        assert len(entries) == 0
        return Cache(self.seed, np.empty(0, dtype=np.int64), self.part)

    def forward(self, tokens: Tokens, *, n_logits: int, observe: frozenset[str]) -> Step:
        self.run(tokens)
        queries = np.stack([self.queries(layer)[:, -len(tokens) :] for layer in range(LAYERS)])
        return Step(np.empty((0, 1), dtype=np.float32), queries=queries)

    def truncate(self, n_tokens: int) -> None:
        self.context = self.context[:n_tokens]

    def close(self) -> None:
        pass


def rotation(position: int) -> Floats:
    """The matrix that turns a vector of halves at a position."""
    cos, sin = np.diag(np.cos(position * FREQUENCIES)), np.diag(np.sin(position * FREQUENCIES))
    return np.block([[cos, -sin], [sin, cos]])


def head_turned(x: Floats, positions: Indices, part: int) -> Floats:
    """x: (n, head_dim). part: dimensions that are left as they are."""
    turned = np.array([rotation(int(p)) @ row for p, row in zip(positions, x, strict=True)]).reshape(x.shape)
    return np.concatenate([turned[:, : DIM - part], x[:, DIM - part :]], axis=1)


def view_of(seed: int, n: int = 36, rows: int = 0) -> CacheView:
    tokens = np.random.default_rng(seed).permutation(n)  # all different, so that no two entries are alike
    cache: Any = Cache(seed, tokens)
    queries = np.stack([cache.queries(layer)[:, n - rows :] for layer in range(LAYERS)]) if rows else None
    return CacheView(cache, tokens[n - rows :], tokens, queries)


def softmax(x: list[float]) -> Floats:
    e = [math.exp(v - max(x)) for v in x]
    return np.array(e) / sum(e)


def always(kept: list[int], n: int = 36) -> list[int]:
    return sorted({0, 1, *range(n - 6, n), *kept})


@MANY
@given(seed=SEEDS)
def test_rotations_are_measured(seed: int) -> None:
    cache: Any = Cache(seed, np.arange(5))
    np.testing.assert_allclose(measured_frequencies(cache), FREQUENCIES, rtol=1e-4)
    assert len(cache.context) == 5


def test_heads_that_turn_in_part_are_refused() -> None:
    cache: Any = Cache(1, np.arange(5), part=2)
    with pytest.raises(AbilityError, match="not turned in halves"):
        measured_frequencies(cache)


@MANY
@given(seed=SEEDS, value_norm=st.booleans(), epsilon=st.sampled_from([0.0, 0.02]))
def test_expected_attention(seed: int, value_norm: bool, epsilon: float) -> None:
    view = view_of(seed, rows=9)
    policy = ExpectedAttention(observed=9, ahead=7, value_norm=value_norm, epsilon=epsilon, **SHAPE)
    ours = policy.scores(view)
    turn = np.mean([rotation(p) for p in range(36, 36 + 7)], axis=0)
    cache: Any = view.session
    for layer in range(LAYERS):
        keys, values = cache.keys_values(layer)
        for head in range(KV_HEADS):
            shares = []
            for q in cache.plain(layer)[head * GROUP : (head + 1) * GROUP, -9:].astype(np.float64):
                mean, around = turn @ q.mean(axis=0), turn @ np.cov(q.T, bias=True) @ turn.T
                score = [mean @ k / DIM**0.5 + k @ around @ k / (2 * DIM) for k in keys[head, 2:]]
                shares.append(softmax(score))
            wanted = np.mean(shares, axis=0)
            if value_norm:
                wanted = (wanted + epsilon) * [np.linalg.norm(v) for v in values[head, 2:]]
            np.testing.assert_allclose(ours[layer, head, 2:], wanted, rtol=2e-3, atol=1e-6)
            kept = sorted(range(2, 30), key=lambda i: -ours[layer, head, i])[:16]
            assert policy.select(view)[layer, head].tolist() == always(kept)


@MANY
@given(seed=SEEDS, chunk=st.integers(3, 40), known=st.sampled_from([0, 20, 29]))
def test_kvzip(seed: int, chunk: int, known: int) -> None:
    view = view_of(seed)
    old = np.random.default_rng(seed).random((LAYERS, KV_HEADS, known), dtype=np.float32)
    view.carried = old if known else None
    ours = KVzip(chunk=chunk, **SHAPE).scores(view)
    assert np.array_equal(ours[..., :known], old) and view.to_carry is ours
    assert len(view.session.positions) == 36, "what was repeated is still there"
    for start in range(known, 36, chunk):
        stop = min(start + chunk, 36)
        again: Any = Cache(seed, view.context)
        repeated = view.context[max(start - 8, 0) : stop]
        again.run(repeated)
        for layer in range(LAYERS):
            keys = again.keys_values(layer)[0].astype(np.float64)
            for head in range(KV_HEADS):
                best = np.zeros(stop - start)
                for q in again.queries(layer)[head * GROUP : (head + 1) * GROUP]:
                    for row in range(36, 36 + len(repeated)):
                        first = [*range(min(2, start))]
                        seen = [*first, *range(start, stop), *range(36, row + 1)]
                        shares = softmax([float(q[row] @ keys[head, i]) / DIM**0.5 for i in seen])
                        best = np.maximum(best, shares[len(first) : len(first) + stop - start])
                np.testing.assert_allclose(ours[layer, head, start:stop], best, rtol=1e-3, atol=1e-6)


@MANY
@given(seed=SEEDS, first=st.sampled_from([0.0, 0.5, 1.0]), per_head=st.booleans())
def test_critical_kv(seed: int, first: float, per_head: bool) -> None:
    view = view_of(seed, rows=6)
    base = SnapKV(kernel=3, per_head=per_head, **SHAPE)
    policy = CriticalKV(scorer=base, first=first)
    scores, kept = base.scores(view), policy.select(view)
    if not per_head:
        votes = policy.scores(view).sum(axis=(0, 1))
        assert kept.tolist() == always(sorted(range(2, 30), key=lambda i: -votes[i])[:16])
        return
    for layer in range(LAYERS):
        _, values = view.keys_values(layer)
        for head in range(KV_HEADS):
            score, size = scores[layer, head], [sum(abs(float(x)) for x in v) for v in values[head]]
            stage1 = sorted(range(2, 30), key=lambda i: -score[i])[: int(16 * first)]
            rest = [i for i in range(2, 30) if i not in stage1]
            stage2 = sorted(rest, key=lambda i: -(score[i] + 1e-4) * size[i])[: 16 - len(stage1)]
            assert kept[layer, head].tolist() == always(stage1 + stage2)


@MANY
@given(seed=SEEDS, size=st.integers(1, 5), anchor=st.sampled_from(["alternating", "zeros", "ones", "mean"]))
def test_kv_crush(seed: int, size: int, anchor: str) -> None:
    """Block by block: signatures of all blocks, distances of those that the scores give up, evenly spaced samples."""
    view, scorer = view_of(seed), Knorm(**SHAPE)
    policy = KVCrush(scorer=scorer, size=size, share=0.4, anchor=anchor)
    score = scorer.scores(view).sum(axis=(0, 1), dtype=np.float64)[2:30]
    chunks = [list(range(i, min(i + size, 28))) for i in range(0, 28, size)]
    samples = int(16 * 0.4) // size
    room, kept, left = 16 - samples * size, [], []
    for chunk in sorted(chunks, key=lambda c: -float(np.mean(score[c]))):
        if room > 0:
            kept += chunk[:room]
            room -= len(chunk)
        elif len(chunk) == size:
            left.append(chunk[0] // size)
    whole = 28 // size * size
    high = sorted(range(whole), key=lambda i: -score[i])[: whole // 2]
    bits = [[int(i in high) for i in range(b, b + size)] for b in range(0, whole, size)]
    majority = [int(sum(column) / len(bits) > 0.5) for column in zip(*bits, strict=True)]
    points = {"alternating": [i % 2 for i in range(size)], "zeros": [0] * size, "ones": [1] * size, "mean": majority}
    differ = [sum(a != b for a, b in zip(block, points[anchor], strict=True)) for block in bits]
    ranked = sorted(sorted(left), key=lambda block: differ[block])
    n = min(samples, len(ranked))
    for i in range(n):
        block = ranked[i * (len(ranked) // n)]
        kept += range(block * size, block * size + size)
    assert policy.select(view).tolist() == always([i + 2 for i in kept])


@MANY
@given(seed=SEEDS, threshold=st.floats(-1.5, -0.5))
def test_a_threshold(seed: int, threshold: float) -> None:
    view, scorer = view_of(seed), Knorm(**SHAPE)
    score = scorer.scores(view).mean(axis=(0, 1), dtype=np.float64)
    reach = [i for i in range(2, 30) if score[i] >= threshold]
    kept = ThresholdBudget(scorer=scorer, threshold=threshold).select(view)
    assert kept.tolist() == always(sorted(reach, key=lambda i: -score[i])[:16])


@pytest.mark.parametrize(
    "policy",
    [
        KVzip(chunk=9, **SHAPE),
        ExpectedAttention(observed=9, **SHAPE),
        CriticalKV(scorer=KVzip(chunk=9, **SHAPE)),
        KVCrush(scorer=KeyDiff(**SHAPE), size=3),
        ChunkKV(scorer=CriticalKV(scorer=SnapKV(**SHAPE)), size=3),
        ThresholdBudget(scorer=Knorm(**SHAPE), threshold=-0.9),
    ],
    ids=lambda policy: policy.name,
)
def test_the_same_cache_gives_the_same_selection(policy: Any) -> None:
    first, again = (policy.select(view_of(3, rows=policy.rows or 0)) for _ in range(2))
    assert np.array_equal(first, again)
    rows = first.reshape(-1, first.shape[-1])
    assert rows.shape[1] <= 24 and (np.diff(rows, axis=1) > 0).all()
    assert (rows[:, :2] == [0, 1]).all() and (rows[:, -6:] == np.arange(30, 36)).all()


def test_wrappers_by_name() -> None:
    assert policy_by_name("expected:budget=512,value_norm=false") == ExpectedAttention(budget=512, value_norm=False)
    assert (policy_by_name("expected").rows, policy_by_name("expected:every=64").rows) == (128, 64)
    assert policy_by_name("kvzip:chunk=64") == KVzip(chunk=64)
    assert policy_by_name("critical-tova:first=0.25,budget=64") == CriticalKV(scorer=Tova(budget=64), first=0.25)
    assert policy_by_name("crush-keydiff:anchor=mean,size=16") == KVCrush(scorer=KeyDiff(), anchor="mean", size=16)
    assert policy_by_name("threshold-lagkv:threshold=0.5") == ThresholdBudget(scorer=LagKV(), threshold=0.5)
    both = ChunkKV(scorer=CriticalKV(scorer=H2O(budget=300)), size=10)
    assert policy_by_name("chunk-critical-h2o:size=10,budget=300") == both
    assert both.name == "chunk-critical-h2o" and both.needs == {"attention", "keys", "evict_tokens"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: policy_by_name("ada-snapkv"), "'ada-snapkv': AdaKV gives heads unequal budgets; an engine's cache"),
        (lambda: policy_by_name("pyramid-snapkv"), "PyramidKV gives layers unequal budgets"),
        (lambda: policy_by_name("lm-infinite"), "distance clamp acts beyond the trained length"),
        (lambda: policy_by_name("critical-keydiff"), "critical- weighs shares of attention.*keydiff are none"),
        (lambda: policy_by_name("critical-expected"), "expected with value_norm=false"),
        (lambda: policy_by_name("critical-critical-snapkv"), "weighed by values already"),
        (lambda: policy_by_name("critical-sinks"), "no cache policy 'critical-sinks'"),
        (lambda: policy_by_name("chunk-crush-snapkv"), "chunk- wraps a policy that scores every entry"),
        (lambda: policy_by_name("threshold-snapkv"), "threshold-snapkv has no threshold; write"),
        (lambda: policy_by_name("threshold-snapkv:threshold=nan"), "must be a finite number"),
        (lambda: policy_by_name("snapkv:threshold=1"), "'threshold=1' is no setting of snapkv"),
        (lambda: policy_by_name("crush-snapkv:anchor=random"), "anchor is 'random', but must be one of alternating"),
        (lambda: policy_by_name("crush-snapkv:budget=100"), r"a share of 0\.25 of 64 entries.*hold a chunk of 32"),
        (lambda: policy_by_name("expected:observed=0"), "observed is 0"),
        (lambda: policy_by_name("kvzip:budget=20"), "budget of 20 entries cannot hold 4 sinks and a window of 32"),
        (lambda: policy_by_name("kvzip:chunk=0"), "chunk is 0"),
        (lambda: ChunkKV(scorer=SinksAndWindow()), "wraps a policy that scores"),  # type: ignore[arg-type]
        (lambda: CriticalKV(scorer=SnapKV(), first=1.5), r"first is 1\.5"),
        (lambda: KVCrush(size=0), "size is 0"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make()


@pytest.mark.real
@pytest.mark.slow
def test_on_real_text_they_lose_about_as_much_as_sinks_and_window() -> None:
    """Perplexity of the second half of a text, each cache cut to a half and to a quarter of its entries."""
    pytest.importorskip("onnxruntime")
    import pilotfish

    pages = Path(__file__).parents[3] / "docs"
    text = "\n".join(
        (pages / name).read_text("utf-8") for name in ("drafts.md", "exactness.md", "how-a-round-works.md")
    )
    with pilotfish.load(smollm2(), "onnx", speculate=False, threads=2) as model:
        tokens = model.encode(text, raw=True)[:1024]
        full = perplexity(model.target, tokens, None)
        for share in (2, 4):
            size = f"budget={1024 // share - 64},every=64"
            sinks = perplexity(model.target, tokens, policy_by_name(f"sinks:{size}"))
            assert sinks > full
            for name in ("expected", "kvzip", "critical-snapkv"):
                lost = perplexity(model.target, tokens, policy_by_name(f"{name}:{size}"))
                assert 0.97 * full < lost < MOST * sinks, (name, share, full, sinks, lost)


def perplexity(weights: Weights, tokens: Tokens, policy: CachePolicy | None) -> float:
    rows, half = RowRule(tuple(range(2, 65))), len(tokens) // 2
    session = weights.session(None if policy is None else entries_for(policy, rows, weights.info))
    losses, _ = surprisal(CachedSequence(session, rows, policy), tokens, half)
    session.close()
    return math.exp(losses.mean())
