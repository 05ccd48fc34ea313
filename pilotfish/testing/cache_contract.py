"""The cache seen and thinned: eviction, keys and values, hidden states, queries, attention."""

from __future__ import annotations

import numpy as np
import pytest

from ..runtime.errors import AbilityError, OptionError
from ..runtime.interfaces import Observation
from .subject import ENGINES, PATHS, TREE, Subject, near, rows_of, text


def evicted_entries_are_gone_and_positions_stay(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 40)
        if "evict_tokens" not in one.abilities:
            one.forward(tokens[:4], n_logits=0)
            with pytest.raises(AbilityError, match=ENGINES):
                one.keep(rows_of(0, 1))
            assert one.positions.tolist() == [0, 1, 2, 3]
            return
        kept = np.concatenate([np.arange(4), np.arange(7, 20, 3), np.arange(22, 30)])
        for session in (one, other):
            session.forward(tokens[:30], n_logits=0)
        whole = one.forward(tokens[30:], n_logits=10).logits.copy()
        one.truncate(30)
        one.keep(kept)
        assert one.positions.tolist() == kept.tolist()
        gapped = one.forward(tokens[30:], n_logits=10).logits.copy()
        assert one.positions.tolist() == [*kept.tolist(), *range(30, 40)]
        assert not np.array_equal(gapped, whole)
        other.keep(np.arange(30))  # everything: nothing happens
        other.keep(np.sort(np.concatenate([kept, [5, 6]])))
        other.keep(rows_of(*[i for i, p in enumerate(other.positions) if p not in (5, 6)]))  # in two goes
        assert np.array_equal(other.forward(tokens[30:], n_logits=10).logits, gapped)
        one.truncate(25)  # a position, not a number of entries
        assert one.positions.tolist() == [p for p in kept.tolist() if p < 25]
        for bad in (rows_of(-1, 0), rows_of(3, 2), rows_of(1, 1), rows_of(0, len(one.positions))):
            with pytest.raises(OptionError):
                one.keep(bad)


def trees_work_on_a_cache_with_gaps(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if not {"tree", "evict_tokens"} <= one.abilities:
            return
        tokens, drafted, after = text(one, 20), text(one, 6, seed=2), text(one, 5, seed=3)
        for session in (one, other):
            session.forward(tokens, n_logits=0)
            session.keep(rows_of(0, 1, 2, 9, 13, 18, 19))
        one.forward(drafted, n_logits=6, parents=TREE)
        one.accept(PATHS[1])
        other.forward(drafted[PATHS[1]], n_logits=0)
        assert one.positions.tolist() == other.positions.tolist() == [0, 1, 2, 9, 13, 18, 19, 20, 21, 22]
        ours, theirs = (s.forward(after, n_logits=5).logits for s in (one, other))
        subject.agree(ours, theirs)


def heads_keep_entries_of_their_own(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        info, tokens = one.info, text(one, 40)
        one.forward(tokens[:30], n_logits=0)
        rng = np.random.default_rng(5)
        kept = np.array(
            [
                [
                    [0, *sorted(rng.choice(np.arange(1, 24), 8, replace=False)), *range(24, 30)]
                    for _ in range(info.kv_heads)
                ]
                for _ in range(info.n_layers)
            ]
        )
        if "evict_heads" not in one.abilities:
            with pytest.raises(AbilityError, match=ENGINES):
                one.keep(kept)
            assert one.positions.tolist() == list(range(30))
            return
        before = [tuple(x.copy() for x in one.keys_values(layer)) for layer in range(info.n_layers)]
        for bad in (kept[:, :, ::-1], kept[..., :0, :], kept + 1):
            with pytest.raises(OptionError):
                one.keep(bad)
        assert one.positions.tolist() == list(range(30))
        one.keep(kept)
        assert one.positions.tolist() == kept.max(axis=(0, 1)).tolist()  # of heads that differ, the last one counts
        for layer, pair in enumerate(before):
            for held, x in zip(one.keys_values(layer), pair, strict=True):
                assert np.array_equal(held, np.take_along_axis(x, kept[layer][:, :, None], axis=1))
        other.forward(tokens[:30], n_logits=0)
        other.keep(np.broadcast_to(kept[:1, :1], kept.shape))  # all heads alike is what whole tokens are
        alike = other.forward(tokens[30:], n_logits=10).logits.copy()
        other.truncate(0)
        other.forward(tokens[:30], n_logits=0)
        other.keep(kept[0, 0])
        assert np.array_equal(other.forward(tokens[30:], n_logits=10).logits, alike)
        apart = one.forward(tokens[30:], n_logits=10).logits.copy()
        assert not np.array_equal(apart, alike) or kept.shape[:2] == (1, 1)
        one.truncate(30)  # the rows behind an eviction are forgotten as ever
        assert np.array_equal(one.forward(tokens[30:], n_logits=10).logits, apart)


def keys_are_those_of_the_entries(subject: Subject) -> None:
    with subject.session() as session:
        session.forward(text(session, 10), n_logits=0)
        if "keys" not in session.abilities:
            with pytest.raises(AbilityError, match=ENGINES):
                session.keys_values(0)
            return
        info = session.info
        before = [tuple(x.copy() for x in session.keys_values(layer)) for layer in range(info.n_layers)]
        for pair in before:
            assert [x.shape for x in pair] == [(info.kv_heads, 10, info.head_dim)] * 2
            assert all(x.dtype == np.float32 and np.abs(x).sum() > 0 for x in pair)
        session.truncate(8)
        kept = np.arange(8)
        if "evict_tokens" in session.abilities:
            kept = rows_of(0, 3, 4, 7)
            session.keep(kept)
        for layer, pair in enumerate(before):
            for held, x in zip(session.keys_values(layer), pair, strict=True):
                assert np.array_equal(held, x[:, kept])


OBSERVATIONS: tuple[Observation, ...] = ("hidden", "queries", "attention")


def what_is_observed_has_its_shape_and_changes_nothing(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        info, tokens = one.info, text(one, 30)
        one.forward(tokens[:20], n_logits=0)
        other.forward(tokens[:20], n_logits=0)
        plain = other.forward(tokens[20:26], n_logits=3).logits.copy()
        shapes = {
            "hidden": (6, info.hidden_size),
            "queries": (info.n_layers, info.n_heads, 6, info.head_dim),
            "attention": (info.n_layers, info.n_heads, 6, 26),
        }
        for name in OBSERVATIONS:
            if name not in one.abilities:
                with pytest.raises(AbilityError, match=ENGINES):
                    one.forward(tokens[20:26], n_logits=3, observe=frozenset({name}))
                assert len(one.positions) == 20
                continue
            step = one.forward(tokens[20:26], n_logits=3, observe=frozenset({name}))
            subject.agree(step.logits, plain)
            for other_name in OBSERVATIONS:
                found = getattr(step, other_name)
                assert (found is not None) == (other_name == name)
            found = getattr(step, name)
            assert found.shape == shapes[name] and found.dtype == np.float32 and np.isfinite(found).all()
            assert np.abs(found).sum() > 0
            one.truncate(20)
        able = frozenset(name for name in OBSERVATIONS if name in one.abilities)
        step = one.forward(tokens[20:26], n_logits=0, observe=able)
        assert all(getattr(step, name) is not None for name in able)


def attention_is_a_distribution_over_what_is_visible(subject: Subject) -> None:
    """For an engine that shows it: softmax of its own queries and keys, true positions or not, evicted or not."""
    with subject.session() as session:
        if not {"attention", "queries", "keys", "evict_tokens", "tree"} <= session.abilities:
            return
        info, tokens = session.info, text(session, 40)
        session.forward(tokens[:20], n_logits=0)
        session.keep(rows_of(0, 1, 5, 6, 7, 12, 19))
        observe: frozenset[Observation] = frozenset({"attention", "queries"})
        step = session.forward(tokens[20:26], n_logits=0, parents=TREE, observe=observe)
        assert step.attention is not None and step.queries is not None
        sees = np.eye(6, dtype=bool)
        for row in range(1, 6):
            sees[row] |= sees[TREE[row]]
        for layer in range(info.n_layers):
            keys, _ = session.keys_values(layer)
            keys = np.repeat(keys, info.n_heads // info.kv_heads, axis=0)
            scores = step.queries[layer] @ keys.swapaxes(1, 2) / np.sqrt(info.head_dim)
            scores[:, :, 7:][:, ~sees] = -np.inf
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            near(step.attention[layer], shares / shares.sum(axis=-1, keepdims=True), 1e-5)


def evicting_makes_room(subject: Subject) -> None:
    with subject.session(max_context=96) as session:
        if "evict_tokens" not in session.abilities:
            return
        session.forward(text(session, 96), n_logits=0)
        session.keep(np.arange(86, 96))
        session.forward(text(session, 86), n_logits=0)
        assert session.positions.tolist() == list(range(86, 182))


def only_what_is_attended_to_is_seen(subject: Subject) -> None:
    with subject.session() as session:
        tokens, entries = text(session, 130), np.r_[0:32, 64:100]
        session.forward(tokens[:100], n_logits=0)
        if "attend" not in session.abilities:
            with pytest.raises(AbilityError, match=ENGINES):
                session.attend(entries)
            return
        whole = session.forward(tokens[100:104], n_logits=4).logits.copy()
        session.truncate(100)
        session.attend(entries)
        for last in (np.arange(50), np.r_[4:2:-1], np.arange(101)):
            with pytest.raises(OptionError):
                session.attend(last)
        with subject.sessions(1) as (other,):
            other.forward(tokens[:100], n_logits=0)
            other.keep(entries)
            for start, end in ((100, 110), (110, 130)):  # and what both have appended since
                ours = session.forward(tokens[start:end], n_logits=end - start).logits.copy()
                subject.agree(ours, other.forward(tokens[start:end], n_logits=end - start).logits)
        assert len(session.positions) == 130 and session.positions[-1] == 129
        session.truncate(100)
        session.attend(None)
        assert np.array_equal(session.forward(tokens[100:104], n_logits=4).logits, whole)
        session.attend(np.r_[0:32, 64:104])
        session.truncate(100)  # forgets one of those that were there
        assert np.array_equal(session.forward(tokens[100:104], n_logits=4).logits, whole)


CHECKS = (
    evicted_entries_are_gone_and_positions_stay,
    evicting_makes_room,
    trees_work_on_a_cache_with_gaps,
    heads_keep_entries_of_their_own,
    only_what_is_attended_to_is_seen,
    keys_are_those_of_the_entries,
    what_is_observed_has_its_shape_and_changes_nothing,
    attention_is_a_distribution_over_what_is_visible,
)
