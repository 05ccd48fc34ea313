"""Each policy keeps what its rule says, found again here by a plain reading of the rule; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilotfish.backends.reference.backend import BACKEND as REFERENCE
from pilotfish.runtime.cache.compression import CompressedCache
from pilotfish.runtime.cache.policies import (
    H2O,
    CachePolicy,
    ChunkKV,
    KeyDiff,
    Knorm,
    LagKV,
    SinksAndWindow,
    SirLLM,
    SnapKV,
    Tova,
    policy_by_name,
)
from pilotfish.runtime.cache.policies.by_name import POLICIES
from pilotfish.runtime.cache.policies.scorer import keep_best
from pilotfish.runtime.cache.sequence import CachedSequence, Cancelled
from pilotfish.runtime.errors import AbilityError, ContextFullError, OptionError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Session, Tokens, Weights
from pilotfish.runtime.profiling.row_classes import RowRule
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ToyWeights

SIZE: dict[str, int] = {"budget": 24, "every": 8, "sinks": 2, "window": 6}
FULL, N = 32, 24
LAYERS, HEADS, GROUP, DIM = 2, 2, 2, 16
WIDTHS = RowRule(tuple(range(2, 34)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    path = tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q8_0", sizes=Sizes(context=256), seed=10)
    opened = REFERENCE.open(open_model(path), device=None, threads=1, kv_dtype=None)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tokens(weights: Weights) -> Tokens:
    return np.random.default_rng(4).integers(0, weights.info.vocab_size, 80)


class Seen:
    """A full cache of the first FULL tokens, with everything there is to see, run in one go."""

    def __init__(self, weights: Weights, tokens: Tokens) -> None:
        session = weights.session()
        step = session.forward(tokens[:FULL], n_logits=FULL, observe=frozenset({"attention"}))
        assert step.attention is not None
        self.attention = step.attention.reshape(LAYERS, HEADS, GROUP, FULL, FULL)
        self.logits, self.tokens = step.logits, tokens
        self.keys = np.stack([session.keys_values(layer)[0] for layer in range(LAYERS)])
        self.values = np.stack([session.keys_values(layer)[1] for layer in range(LAYERS)])


def best(score: Callable[[int], float], n: int = N - 2 - 6) -> list[int]:
    """Sinks, the n entries between with the highest score, window."""
    ranked = sorted(range(2, FULL - 6), key=lambda i: -score(i))
    return [0, 1, *sorted(ranked[:n]), *range(FULL - 6, FULL)]


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def knorm(s: Seen, layer: int, head: int) -> list[int]:
    return best(lambda i: -float(np.linalg.norm(s.keys[layer, head, i])))


def keydiff(s: Seen, layer: int, head: int) -> list[int]:
    keys = s.keys[layer, head]
    mean = np.mean([k / np.linalg.norm(k) for k in keys], axis=0)
    return best(lambda i: -cosine(keys[i], mean))


def lagkv(s: Seen, layer: int, head: int) -> list[int]:
    score = np.zeros(FULL)
    for x in (s.keys[layer, head], s.values[layer, head]):
        for start in range(2, 26, 6):  # partitions of six, the window is the last one's reference
            low, high = (f(x[start + 6 : start + 12], axis=0) for f in (np.min, np.max))
            spread = np.exp(np.std((x[start : start + 6] - low) / (high - low), axis=1))
            score[start : start + 6] += spread / spread.sum()
    return best(lambda i: float(score[i]))


def tova(s: Seen, layer: int, head: int) -> list[int]:
    return best(lambda i: float(s.attention[layer, :, :, -1, i].mean()))


def h2o(s: Seen, layer: int, head: int) -> list[int]:
    return best(lambda i: float(s.attention[layer, head, :, :, i].sum()))


def snapkv(s: Seen, layer: int, head: int) -> list[int]:
    def score(i: int) -> float:
        near = [j for j in range(i - 2, i + 3) if j < FULL - 6]
        return sum(float(s.attention[layer, head, :, -6:, j].mean()) for j in near)

    return best(score)


def rkv(s: Seen, layer: int, head: int) -> list[int]:
    keys = s.keys[layer, head]
    alike = np.array([[cosine(a, b) if i != j else 0.0 for j, b in enumerate(keys)] for i, a in enumerate(keys)])
    alike[alike <= 0.5] = 0.0
    for row in alike:
        if row.any():
            row[np.flatnonzero(row)[-1]] = 0.0
    redundancy = np.exp(alike.mean(axis=0))
    redundancy /= redundancy.sum()
    importance = s.attention[layer, head, :, -6:].max(axis=0).mean(axis=0)
    return best(lambda i: float(0.1 * importance[i] - 0.9 * redundancy[i]))


RULES = {"knorm": knorm, "keydiff": keydiff, "lagkv": lagkv, "tova": tova, "h2o": h2o, "snapkv": snapkv, "rkv": rkv}


def compressed(session: Session, tokens: Tokens, policy: CachePolicy, n: int = FULL) -> CachedSequence:
    """The cache of the first n tokens after the compression that they have filled it for."""
    sequence = CachedSequence(session, WIDTHS, policy)
    sequence.cover(tokens[:n])
    sequence.compress()  # else with the next token
    return sequence


def small(kind: Any, **options: Any) -> Any:
    return kind(**SIZE, **options, **({"lag": 6} if kind is LagKV else {}))


@pytest.mark.parametrize("name", RULES)
def test_every_head_keeps_what_the_rule_says(name: str, weights: Weights, tokens: Tokens) -> None:
    seen = Seen(weights, tokens)
    done = compressed(weights.session(), tokens, small(POLICIES[name]))
    for layer in range(LAYERS):
        keys, values = done.session.keys_values(layer)
        for head in range(HEADS):
            kept = RULES[name](seen, layer, head)
            assert len(kept) == N
            np.testing.assert_allclose(keys[head], seen.keys[layer, head, kept], atol=1e-4)
            np.testing.assert_allclose(values[head], seen.values[layer, head, kept], atol=1e-4)


def test_sinks_and_the_recent_past_stay(weights: Weights, tokens: Tokens) -> None:
    done = compressed(weights.session(), tokens, small(SinksAndWindow))
    assert done.session.positions.tolist() == [0, 1, *range(10, 32)]
    done.cover(tokens[:41])
    assert done.session.positions.tolist() == [0, 1, *range(18, 41)]


def test_one_selection_for_all_heads_adds_their_scores(weights: Weights, tokens: Tokens) -> None:
    seen = Seen(weights, tokens)
    total = seen.attention.sum(axis=(0, 1, 2, 3))
    done = compressed(weights.session(), tokens, small(H2O, per_head=False))
    assert done.session.positions.tolist() == best(lambda i: float(total[i]))


@pytest.mark.parametrize("kind", [Tova, SnapKV])
def test_attention_that_an_engine_shows_is_what_queries_and_keys_give(
    kind: Any, weights: Weights, tokens: Tokens
) -> None:
    session = weights.session()
    session.abilities = session.abilities - {"queries"}
    for n in (FULL, 80):
        shown = compressed(session, tokens, small(kind), n)
        assert isinstance(shown.mode, CompressedCache) and shown.mode.observe == {"attention"}
        for layer in range(LAYERS):
            wanted = compressed(weights.session(), tokens, small(kind), n).session.keys_values(layer)
            for ours, theirs in zip(shown.session.keys_values(layer), wanted, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with pytest.raises(AbilityError, match="needs attention"):  # of every row that was ever run
        CachedSequence(session, WIDTHS, small(H2O))


def surprises(session: Session, tokens: Tokens, known: int) -> list[float]:
    """-log p of the tokens from `known` on, one step each, by the cache as it is then."""
    found = []
    for i in range(known, len(tokens)):
        logits = session.forward(tokens[i - 1 : i], n_logits=1).logits[0].astype(np.float64)
        found.append(float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[i]]))
    session.forward(tokens[-1:], n_logits=0)
    return found


def test_surprise_is_remembered_from_one_selection_to_the_next(weights: Weights, tokens: Tokens) -> None:
    session = weights.session()
    scores = dict(enumerate([0.0, *surprises(session, tokens[:FULL], 1)]))
    kept = best(scores.__getitem__)
    done = compressed(weights.session(), tokens, small(SirLLM, decay=0.5))
    assert done.session.positions.tolist() == kept

    # token 32 follows a row of the cache as it was; 33 to 39 follow rows of what was left of it
    step = weights.session().forward(tokens[:FULL], n_logits=1).logits[0].astype(np.float64)
    scores = {i: 0.5 * scores[i] for i in kept}
    scores[FULL] = float(np.log(np.exp(step - step.max()).sum()) + step.max() - step[tokens[FULL]])
    session.keep(np.array(kept))
    scores |= dict(enumerate(surprises(session, tokens[:40], 33), 33))
    middle = sorted(list(scores)[2:-6], key=lambda i: -scores[i])[: N - 8]
    done.cover(tokens[:40])
    assert done.session.positions.tolist() == [0, 1, *sorted(middle), *range(34, 40)]


def test_attention_adds_up_from_one_selection_to_the_next(weights: Weights, tokens: Tokens) -> None:
    seen = Seen(weights, tokens)
    total = seen.attention.sum(axis=(0, 1, 2, 3))
    kept = best(lambda i: float(total[i]))
    session = weights.session()
    session.forward(tokens[:FULL], n_logits=0)
    session.keep(np.array(kept))
    step = session.forward(tokens[FULL:40], n_logits=0, observe=frozenset({"attention"}))
    assert step.attention is not None
    scores = np.concatenate([total[kept], np.zeros(8)]) + step.attention.sum(axis=(0, 1, 2))
    middle = sorted(range(2, 26), key=lambda i: -scores[i])[: N - 8]
    places = [*kept, *range(FULL, 40)]
    done = compressed(weights.session(), tokens, small(H2O, per_head=False), 40)
    assert done.session.positions.tolist() == [places[i] for i in (0, 1, *sorted(middle), *range(26, 32))]


def test_chunks_stay_whole_but_for_the_last_one(weights: Weights, tokens: Tokens) -> None:
    seen = Seen(weights, tokens)
    mean = [np.mean([k / np.linalg.norm(k) for k in head], axis=0) for head in seen.keys.reshape(-1, FULL, DIM)]
    score = [
        -sum(cosine(h[i], m) for h, m in zip(seen.keys.reshape(-1, FULL, DIM), mean, strict=True)) for i in range(FULL)
    ]
    chunks = sorted(range(2, 26, 5), key=lambda i: -float(np.mean(score[i : min(i + 5, 26)])))
    spans = [j for i in chunks for j in range(i, min(i + 5, 26))][: N - 8]
    done = compressed(weights.session(), tokens, ChunkKV(scorer=small(KeyDiff), size=5))
    assert done.session.positions.tolist() == [0, 1, *sorted(spans), *range(26, 32)]


@pytest.mark.parametrize("rows", [WIDTHS, RowRule((4, 8, 16)), RowRule((8,))], ids=str)
@pytest.mark.parametrize("name", ["sinks", "sirllm", "snapkv", "h2o", "tova"])
def test_chunks_and_row_classes_do_not_move_a_compression(
    name: str, rows: RowRule, weights: Weights, tokens: Tokens
) -> None:
    """Prompts in one go and token by token, at any width: the same cache, never larger than it may be."""
    policy = small(POLICIES[name])
    whole, bits = CachedSequence(weights.session(), rows, policy), CachedSequence(weights.session(), rows, policy)
    most = 0
    whole.cover(tokens)
    for n in range(1, len(tokens) + 1):
        bits.cover(tokens[:n])
        most = max(most, len(bits.session.positions))
    whole.compress()
    bits.compress()
    assert whole.session.positions.tolist() == bits.session.positions.tolist()
    assert FULL - 1 <= most <= FULL
    assert len(whole.session.positions) == whole.n_entries == N  # 80 tokens: just compressed
    for layer in range(LAYERS):
        for ours, theirs in zip(whole.session.keys_values(layer), bits.session.keys_values(layer), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_cancel_while_a_policy_watches_loses_nothing(weights: Weights, tokens: Tokens) -> None:
    policy = small(H2O)
    sequence, asked = CachedSequence(weights.session(), WIDTHS, policy), iter([False, False, True])
    with pytest.raises(Cancelled):
        sequence.cover(tokens, cancelled=lambda: next(asked, True))
    sequence.cover(tokens)
    for layer in range(LAYERS):
        wanted = compressed(weights.session(), tokens, policy, 80).session.keys_values(layer)
        for ours, theirs in zip(sequence.session.keys_values(layer), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SnapKV(budget=30, sinks=4, window=32), "budget of 30 entries cannot hold 4 sinks and a window of 32"),
        (lambda: SnapKV(every=4), "8 rows are looked at, but only 4"),
        (lambda: SnapKV(every=16, observed=32), "32 rows are looked at, but only 16"),
        (lambda: SnapKV(observed=0), "observed is 0, but must be from 1"),
        (lambda: SinksAndWindow(window=0), "window is 0"),
        (lambda: KeyDiff(every=0), "every is 0"),
        (lambda: SnapKV(kernel=4), "kernel is 4, but must be odd"),
        (lambda: ChunkKV(size=0), "size is 0"),
        (lambda: policy_by_name("snapkw"), "no cache policy 'snapkw'; there are sinks, sirllm, "),
        (lambda: policy_by_name("chunk-sinks"), "no cache policy 'chunk-sinks'"),
        (lambda: policy_by_name("snapkv:size=3"), "'size=3' is no setting of snapkv"),
        (lambda: policy_by_name("snapkv:budget"), "'budget' is no setting of snapkv"),
        (lambda: policy_by_name("snapkv:budget=many"), "budget of snapkv is 'many', but must be a number"),
        (lambda: policy_by_name("snapkv:per_head=2"), "per_head of snapkv is '2', but must be true or false"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make()


def test_names_and_settings() -> None:
    assert policy_by_name("snapkv") == SnapKV()
    assert policy_by_name("snapkv:budget=512,every=64,per_head=false") == SnapKV(budget=512, every=64, per_head=False)
    assert policy_by_name("sirllm:decay=0.7") == SirLLM(decay=0.7)
    assert policy_by_name("chunk-keydiff:size=10,budget=300") == ChunkKV(scorer=KeyDiff(budget=300), size=10)
    for name, kind in POLICIES.items():
        assert policy_by_name(name) == kind() and kind().name == name
        assert isinstance(kind(), CachePolicy)


def test_what_a_session_cannot_do_is_said_at_once() -> None:
    toy = ToyWeights(context_length=400)
    with pytest.raises(
        AbilityError, match=r"knorm cache policy needs evict_heads, keys, which the toy engine.*another engine"
    ):
        CachedSequence(toy.session(), WIDTHS, small(Knorm))
    with pytest.raises(AbilityError, match="needs attention"):
        CachedSequence(toy.session(), WIDTHS, ChunkKV(scorer=small(Tova)))
    with pytest.raises(OptionError, match=r"keeps 24 entries and adds 8.*up to 33.*is 50.*max_context=65"):
        CachedSequence(toy.session(50), WIDTHS, small(SinksAndWindow))


def test_where_the_positions_end_a_context_ends() -> None:
    sequence = CachedSequence(ToyWeights(context_length=120).session(65), WIDTHS, small(SirLLM))
    assert sequence.longest == 120 - 33
    sequence.cover(np.zeros(87, dtype=np.int64))
    with pytest.raises(ContextFullError, match="88 tokens"):
        sequence.cover(np.zeros(88, dtype=np.int64))


def test_a_loaded_model_compresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pilotfish

    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", quant="Q8_0", sizes=Sizes(context=1024), seed=10)
    prompt = "the cat and the dog and the " * 12
    with (
        pilotfish.load(path, "reference", cache="keydiff:budget=64,every=32") as model,
        model.sibling(policy=None) as plain,
        pilotfish.load(path, "reference") as full,
    ):
        assert 1024 - 33 <= model.max_context < 1024 and model.cache == KeyDiff(budget=64, every=32)
        ours, theirs, whole = (m.generate(prompt, max_new_tokens=40) for m in (model, plain, full))
        assert ours.token_ids == theirs.token_ids
        assert ours.stats.kv_entries <= 96 < whole.stats.kv_entries
        assert ours.stats.kv_bytes < whole.stats.kv_bytes * 96 / whole.stats.kv_entries + 1
        again = model.generate(prompt, max_new_tokens=40)  # what an answer has pushed out must be read again
        assert again.token_ids == ours.token_ids and again.stats.n_reused == 0
        with pytest.raises(ContextFullError, match="as far as the model's positions go"):
            model.generate(prompt, max_new_tokens=5000)
    with pytest.raises(OptionError, match="max_context is 90"):
        pilotfish.load(path, "reference", cache="keydiff:budget=64,every=32", max_context=90)


def test_the_command_line_takes_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pilotfish.apps import cli

    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "tiny.gguf", quant="Q8_0", sizes=Sizes(context=1024), seed=10)
    call = ["pilotfish", "run", str(path), "the cat and the dog " * 20, "--engine", "reference", "-n", "8", "--json"]
    monkeypatch.setattr("sys.argv", [*call, "--cache", "keydiff:budget=64,every=32"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code in (None, 0)
    assert json.loads(capsys.readouterr().out)["kv_entries"] <= 96
    monkeypatch.setattr("sys.argv", [*call, "--cache", "keydiff:budget=9"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2 and "budget of 9" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("values", [3, 1000])
def test_the_best_are_found_without_sorting(values: int) -> None:
    """As by a stable sort: of equal scores the older entries stay."""
    scores = np.random.default_rng(values).integers(0, values, (5, 2, 300)).astype(np.float32) / 7
    scores[0, 0, 100:150] = -np.inf
    scores[1, 1, 20:40] = np.nan
    for budget in (60, 61, 250, 300):
        kept = keep_best(scores, SinksAndWindow(budget=budget, window=50))
        worth = np.nan_to_num(scores[..., 4:250], nan=-np.inf)
        best = np.sort(np.argsort(-worth, axis=-1, kind="stable")[..., : budget - 54], axis=-1) + 4
        assert np.array_equal(kept[..., 4:-50], best), budget
        assert (kept[..., :4] == np.arange(4)).all() and (kept[..., -50:] == np.arange(250, 300)).all()
