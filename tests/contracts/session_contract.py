"""What every engine promises, as tests. An engine passes by subclassing SessionContract with a `subject` fixture.

    class TestMine(SessionContract):
        @pytest.fixture
        def subject(self) -> Subject:
            return Subject(weights)

The tests need only the interfaces; nothing here knows an engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pilotfish.runtime.errors import AbilityError, ContextFullError, OptionError, PilotfishError
from pilotfish.runtime.interfaces import Floats, Indices, ModelInfo, Observation, Session, Tokens, Weights

CONTEXT = 96  # entries the sessions under test may hold
TREE = np.array([0, 0, 0, 1, 1, 2, 3, 3], dtype=np.int64)  # two branches, of depths 3 and 2
PATH = np.array([0, 1, 3, 7], dtype=np.int64)
OBSERVING: tuple[Observation, ...] = ("hidden", "queries", "attention")


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine with some weights open, and how exact it claims to be.

    noise: largest difference of logits between two ways to compute the same, over the largest logit.
    same_bits: widths whose logits are bitwise equal; () where the engine claims none.
    judge: the reference engine over the same weights, where there is one, and how far the subject may be off it:
        another summation order, or activations in int8.
    """

    weights: Weights
    noise: float = 0.0
    same_bits: tuple[int, ...] = ()
    judge: Weights | None = None
    judge_noise: float = 1e-5

    def session(self) -> Session:
        """An empty one, of CONTEXT entries."""
        return self.weights.session(CONTEXT)

    def tokens(self, n: int, seed: int = 0) -> Tokens:
        """Random tokens of the model's vocabulary."""
        return np.random.default_rng(seed).integers(0, self.weights.info.vocab_size, n)


def run(session: Session, tokens: Tokens, width: int, *, n_logits: int | None = None) -> Floats:
    """Logits of all tokens, run in steps of so many, (n, vocab_size)."""
    logits = [
        session.forward(part, n_logits=len(part)).logits.copy()
        for part in (tokens[i : i + width] for i in range(0, len(tokens), width))
    ]
    return np.concatenate(logits)


def close_to(ours: Floats, theirs: Floats, noise: float) -> bool:
    """Whether two arrays agree: bitwise where the noise is 0."""
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    return float(np.abs(ours - theirs).max(initial=0.0)) <= noise * float(np.abs(theirs).max(initial=0.0))


def path_to(parents: Indices, row: int) -> list[int]:
    """Rows from the root of a tree down to this row."""
    path = [row]
    while path[0]:
        path.insert(0, int(parents[path[0]]))
    return path


def needs(session: Session, ability: str) -> None:
    if ability not in session.abilities:
        pytest.skip(f"does not list {ability!r}")


class SessionContract:
    """One test per promise of runtime.interfaces.Session and Weights."""

    def test_protocols_and_facts(self, subject: Subject) -> None:
        session = subject.session()
        assert isinstance(session, Session) and isinstance(subject.weights, Weights)
        info = session.info
        assert isinstance(info, ModelInfo) and info == subject.weights.info
        assert info.n_heads % info.kv_heads == 0 and info.vocab_size > 1 and info.digest and info.engine
        assert session.max_context == CONTEXT
        assert len(session.positions) == 0
        step = session.forward(subject.tokens(5), n_logits=2)
        assert step.logits.shape == (2, info.vocab_size) and step.logits.dtype == np.float32
        assert session.positions.tolist() == [0, 1, 2, 3, 4]

    def test_no_logits(self, subject: Subject) -> None:
        session, tokens = subject.session(), subject.tokens(6)
        assert session.forward(tokens[:5], n_logits=0).logits.shape == (0, session.info.vocab_size)
        assert close_to(
            session.forward(tokens[5:], n_logits=1).logits, run(subject.session(), tokens, 6)[-1:], subject.noise
        )

    def test_logits_of_the_last_rows_are_those_of_all_rows(self, subject: Subject) -> None:
        tokens = subject.tokens(8)
        everything = run(subject.session(), tokens, 8)
        for n_logits in (2, 5, 7):
            part = subject.session().forward(tokens, n_logits=n_logits).logits
            exact = 0.0 if subject.same_bits else subject.noise
            assert close_to(part, everything[-n_logits:], exact)

    @pytest.mark.parametrize("width", [1, 2, 3, 7, 16, 40])
    def test_many_small_steps_are_one_large_step(self, subject: Subject, width: int) -> None:
        tokens = subject.tokens(40)
        assert close_to(run(subject.session(), tokens, width), run(subject.session(), tokens, 40), subject.noise)

    def test_bits_are_equal_inside_the_row_class(self, subject: Subject) -> None:
        if not subject.same_bits:
            pytest.skip("claims no row class")
        for n_past in (0, 17, 40):
            past, tokens = subject.tokens(n_past, seed=1), subject.tokens(36, seed=2)
            found = {}
            for width in subject.same_bits:
                session = subject.session()
                for part in np.array_split(past, max(n_past // max(width, min(subject.same_bits)), 1)):
                    if len(part):  # prefill in chunks of its own; array_split leaves no short one at the end
                        session.forward(part, n_logits=0)
                found[width] = run(session, tokens[: 36 // width * width], width)
            first = found[subject.same_bits[0]]
            for width, logits in found.items():
                n = min(len(first), len(logits))
                assert np.array_equal(first[:n], logits[:n]), (n_past, width)

    def test_agrees_with_the_judge(self, subject: Subject) -> None:
        if subject.judge is None:
            pytest.skip("is the judge")
        tokens = subject.tokens(30)
        assert close_to(
            run(subject.session(), tokens, 10), run(subject.judge.session(), tokens, 30), subject.judge_noise
        )

    def test_truncating_is_never_having_extended(self, subject: Subject) -> None:
        tokens, other = subject.tokens(24), subject.tokens(24, seed=5)
        session, fresh = subject.session(), subject.session()
        session.forward(tokens[:10], n_logits=0)
        session.forward(other[:9], n_logits=9)
        session.truncate(13)
        session.truncate(10)
        assert session.positions.tolist() == list(range(10))
        fresh.forward(tokens[:10], n_logits=0)
        ours, theirs = (s.forward(tokens[10:], n_logits=14).logits.copy() for s in (session, fresh))
        assert np.array_equal(ours, theirs)
        session.truncate(1000)  # nothing lies beyond
        assert len(session.positions) == 24
        session.truncate(0)
        assert np.array_equal(run(session, tokens, 24), run(subject.session(), tokens, 24))

    def test_every_token_and_its_place_matter(self, subject: Subject) -> None:
        tokens = np.unique(subject.tokens(200))[:12] if subject.weights.info.vocab_size > 12 else subject.tokens(12)
        last = run(subject.session(), tokens, 12)[-1]
        for i in range(11):
            changed = tokens.copy()
            changed[i] = (changed[i] + 1) % subject.weights.info.vocab_size
            assert not np.array_equal(run(subject.session(), changed, 12)[-1], last), f"token {i}"
        if tokens[3] != tokens[7]:
            tokens[[3, 7]] = tokens[[7, 3]]
            assert not np.array_equal(run(subject.session(), tokens, 12)[-1], last)

    def test_two_sessions_do_not_touch_each_other(self, subject: Subject) -> None:
        a, b, alone = subject.session(), subject.session(), subject.session()
        tokens = subject.tokens(20)
        for i in range(0, 20, 4):
            ours = a.forward(tokens[i : i + 4], n_logits=4)
            kept = ours.logits.copy()
            b.forward(tokens[::-1][i : i + 4], n_logits=4)
            assert np.array_equal(ours.logits, kept)  # they belong to the caller until a's next step
            assert np.array_equal(kept, alone.forward(tokens[i : i + 4], n_logits=4).logits)
        b.close()
        assert np.array_equal(run(a, tokens[:4], 4), run(alone, tokens[:4], 4))

    def test_a_full_context_changes_nothing(self, subject: Subject) -> None:
        session, tokens = subject.session(), subject.tokens(CONTEXT + 4)
        run(session, tokens[: CONTEXT - 2], 16)
        before = session.positions.copy()
        with pytest.raises(ContextFullError, match=rf"{CONTEXT}.*max_context"):
            session.forward(tokens[:3], n_logits=1)
        assert np.array_equal(session.positions, before)
        ours = session.forward(tokens[CONTEXT - 2 : CONTEXT], n_logits=2).logits.copy()
        with pytest.raises(ContextFullError):
            session.forward(tokens[:1], n_logits=0)
        theirs = run(subject.session(), tokens[:CONTEXT], CONTEXT)[-2:]
        assert close_to(ours, theirs, subject.noise)
        session.truncate(CONTEXT - 2)
        assert np.array_equal(session.forward(tokens[CONTEXT - 2 : CONTEXT], n_logits=2).logits, ours)

    def test_impossible_options_change_nothing(self, subject: Subject) -> None:
        session, tokens = subject.session(), subject.tokens(6)
        session.forward(tokens[:3], n_logits=0)
        for bad, n_logits in ((tokens[:0], 0), (tokens[:2], 3), (tokens[:2], -1)):
            with pytest.raises(OptionError):
                session.forward(bad, n_logits=n_logits)
        assert session.positions.tolist() == [0, 1, 2]
        ours, fresh = session.forward(tokens[3:], n_logits=3).logits.copy(), subject.session()
        fresh.forward(tokens[:3], n_logits=0)
        assert np.array_equal(ours, fresh.forward(tokens[3:], n_logits=3).logits)
        with pytest.raises(OptionError):
            subject.weights.session(0)

    def test_closing(self, subject: Subject) -> None:
        session = subject.session()
        session.forward(subject.tokens(5), n_logits=0)
        assert session.nbytes > 0
        session.close()
        session.close()
        assert session.nbytes == 0 and len(session.positions) == 0
        with pytest.raises(PilotfishError):
            session.forward(subject.tokens(5), n_logits=0)
        subject.session().forward(subject.tokens(5), n_logits=0)  # the weights are still open

    # -- trees

    def test_a_tree_is_its_paths_run_apart(self, subject: Subject) -> None:
        session = subject.session()
        needs(session, "tree")
        past, tokens = subject.tokens(20), subject.tokens(len(TREE), seed=1)
        session.forward(past, n_logits=0)
        logits = session.forward(tokens, n_logits=len(TREE), parents=TREE).logits
        depths = [len(path_to(TREE, row)) - 1 for row in range(len(TREE))]
        assert session.positions.tolist() == [*range(20), *(20 + d for d in depths)]
        for row in range(len(TREE)):
            path = path_to(TREE, row)
            alone = subject.session()
            alone.forward(past, n_logits=0)
            expected = alone.forward(tokens[path], n_logits=1).logits
            assert close_to(logits[row : row + 1], expected, subject.noise), row

    def test_a_chain_written_as_a_tree_is_the_chain(self, subject: Subject) -> None:
        session, chain = subject.session(), subject.session()
        needs(session, "tree")
        tokens, parents = subject.tokens(14), np.array([0, 0, 1, 2, 3, 4])
        for s in (session, chain):
            s.forward(tokens[:8], n_logits=0)
        ours = session.forward(tokens[8:], n_logits=6, parents=parents).logits
        assert close_to(ours, chain.forward(tokens[8:], n_logits=6).logits, subject.noise)
        assert session.positions.tolist() == list(range(14))

    def test_an_accepted_path_leaves_exactly_its_entries(self, subject: Subject) -> None:
        session, alone = subject.session(), subject.session()
        needs(session, "tree")
        past, tokens, after = subject.tokens(20), subject.tokens(len(TREE), seed=1), subject.tokens(5, seed=2)
        session.forward(past, n_logits=0)
        session.forward(tokens, n_logits=len(TREE), parents=TREE)
        session.accept(PATH)
        assert session.positions.tolist() == list(range(20 + len(PATH)))
        alone.forward(past, n_logits=0)
        alone.forward(tokens[PATH], n_logits=0)
        if "keys" in session.abilities:
            assert session.keys_values(0)[0].shape[1] == 20 + len(PATH)
            for layer in range(session.info.n_layers):
                for ours, theirs in zip(session.keys_values(layer), alone.keys_values(layer), strict=True):
                    assert close_to(ours, theirs, subject.noise)
        ours, theirs = (s.forward(after, n_logits=5).logits for s in (session, alone))
        assert close_to(ours, theirs, subject.noise)

    def test_trees_again_and_again(self, subject: Subject) -> None:
        """As in decoding: many rounds, each a random tree of which a random path is accepted."""
        session, alone = subject.session(), subject.session()
        needs(session, "tree")
        rng = np.random.default_rng(0)
        for round_ in range(9):
            n = int(rng.integers(1, 9))
            parents = np.array([0, *(int(rng.integers(0, r)) for r in range(1, n))])
            tokens = subject.tokens(n, seed=round_)
            path = np.array(path_to(parents, int(rng.integers(0, n))))
            ours = session.forward(tokens, n_logits=n, parents=parents).logits[path[-1]].copy()
            session.accept(path)
            theirs = alone.forward(tokens[path], n_logits=1).logits[0]
            assert close_to(ours, theirs, subject.noise), round_
            assert np.array_equal(session.positions, alone.positions)

    def test_what_is_no_tree(self, subject: Subject) -> None:
        session = subject.session()
        if "tree" not in session.abilities:
            with pytest.raises(AbilityError):
                session.forward(subject.tokens(3), n_logits=0, parents=np.array([0, 0, 1]))
            assert len(session.positions) == 0
            return
        for parents in ([0, 1, 1], [1, 0, 0], [0, 0], [0, -1, 0], [0, 0, 0, 0]):
            with pytest.raises(OptionError):
                session.forward(subject.tokens(3), n_logits=0, parents=np.array(parents))
        assert len(session.positions) == 0
        session.forward(subject.tokens(3), n_logits=0, parents=np.array([0, 0, 0]))
        for rows in ([], [1], [0, 3], [0, 2, 1], [0, 1, 1]):
            with pytest.raises(OptionError):
                session.accept(np.array(rows, dtype=np.int64))
        assert len(session.positions) == 3

    # -- eviction

    def test_evicted_entries_are_gone_and_positions_stay(self, subject: Subject) -> None:
        session = subject.session()
        tokens, after = subject.tokens(30), subject.tokens(6, seed=3)
        session.forward(tokens, n_logits=0)
        kept = np.array([0, 1, 2, 3, 9, 10, 17, *range(22, 30)])
        if "evict_tokens" not in session.abilities:
            with pytest.raises(AbilityError):
                session.keep(kept)
            assert len(session.positions) == 30
            return
        session.keep(kept)
        assert session.positions.tolist() == kept.tolist()
        logits = run(session, after, 2)
        assert session.positions.tolist() == [*kept.tolist(), *range(30, 36)]
        whole = subject.session()
        whole.forward(tokens, n_logits=0)
        assert not np.array_equal(run(whole, after, 2), logits)
        if subject.judge is not None:
            judge = subject.judge.session(CONTEXT)
            judge.forward(tokens, n_logits=0)
            judge.keep(kept)
            assert close_to(logits, run(judge, after, 6), subject.judge_noise)
        session.truncate(32)
        assert session.positions.tolist() == [*kept.tolist(), 30, 31]
        assert close_to(run(session, after[2:], 2), logits[2:], 0.0)

    def test_evicting_makes_room(self, subject: Subject) -> None:
        session = subject.session()
        needs(session, "evict_tokens")
        run(session, subject.tokens(CONTEXT), 16)
        session.keep(np.arange(CONTEXT - 10, CONTEXT))
        run(session, subject.tokens(CONTEXT - 10), 16)
        assert session.positions.tolist() == list(range(CONTEXT - 10, 2 * CONTEXT - 10))

    def test_evicting_and_trees(self, subject: Subject) -> None:
        session = subject.session()
        needs(session, "evict_tokens")
        needs(session, "tree")
        if subject.judge is None:
            pytest.skip("is the judge")
        judge = subject.judge.session(CONTEXT)
        tokens = subject.tokens(len(TREE), seed=1)
        for s in (session, judge):
            s.forward(subject.tokens(20), n_logits=0)
            s.keep(np.array([0, 1, 5, 6, *range(12, 20)]))
        ours, theirs = (s.forward(tokens, n_logits=len(TREE), parents=TREE).logits for s in (session, judge))
        assert close_to(ours, theirs, subject.judge_noise)
        for s in (session, judge):
            s.accept(PATH)
        ours, theirs = (s.forward(tokens[:3], n_logits=3).logits for s in (session, judge))
        assert close_to(ours, theirs, subject.judge_noise)
        assert np.array_equal(session.positions, judge.positions)

    def test_what_cannot_be_kept(self, subject: Subject) -> None:
        session = subject.session()
        needs(session, "evict_tokens")
        session.forward(subject.tokens(5), n_logits=0)
        for entries in ([-1, 2], [0, 5], [2, 1], [1, 1]):
            with pytest.raises(OptionError):
                session.keep(np.array(entries))
        assert session.positions.tolist() == [0, 1, 2, 3, 4]

    # -- observation

    def test_keys_and_values(self, subject: Subject) -> None:
        session, info = subject.session(), subject.weights.info
        session.forward(subject.tokens(9), n_logits=0)
        if "keys" not in session.abilities:
            with pytest.raises(AbilityError):
                session.keys_values(0)
            return
        for layer in range(info.n_layers):
            keys, values = session.keys_values(layer)
            assert keys.shape == values.shape == (info.kv_heads, 9, info.head_dim)
            assert np.isfinite(keys).all() and np.abs(values).max() > 0
        before = session.keys_values(0)[0].copy()
        session.forward(subject.tokens(3), n_logits=0)
        assert np.array_equal(session.keys_values(0)[0][:, :9], before)

    @pytest.mark.parametrize("what", OBSERVING)
    def test_observing(self, subject: Subject, what: Observation) -> None:
        session, info = subject.session(), subject.weights.info
        past, tokens = subject.tokens(7), subject.tokens(4, seed=1)
        session.forward(past, n_logits=0)
        if what not in session.abilities:
            with pytest.raises(AbilityError):
                session.forward(tokens, n_logits=1, observe=frozenset({what}))
            assert len(session.positions) == 7
            return
        step = session.forward(tokens, n_logits=4, observe=frozenset({what}))
        found = getattr(step, what)
        assert all(getattr(step, other) is None for other in OBSERVING if other != what)
        heads = (info.n_layers, info.n_heads, 4)
        shapes = {"hidden": (4, info.hidden_size), "queries": (*heads, info.head_dim), "attention": (*heads, 11)}
        assert found.shape == shapes[what]
        plain = subject.session()
        plain.forward(past, n_logits=0)
        assert np.array_equal(plain.forward(tokens, n_logits=4).logits, step.logits)  # looking changes nothing
        if what == "attention":
            assert np.allclose(found.sum(axis=-1), 1.0, atol=1e-5)
            assert not found[:, :, 0, 8:].any()  # a row does not see those after it
        if subject.judge is not None and what in subject.judge.session(CONTEXT).abilities:
            judge = subject.judge.session(CONTEXT)
            judge.forward(past, n_logits=0)
            expected = getattr(judge.forward(tokens, n_logits=1, observe=frozenset({what})), what)
            assert close_to(found, expected, subject.judge_noise)

    def test_abilities_are_known_ones(self, subject: Subject) -> None:
        known = {"tree", "evict_tokens", "evict_heads", "attention", "queries", "keys", "hidden", "fork", "save"}
        assert subject.session().abilities <= known
