"""Copies of a cache: forks that part ways, and states that are saved and held again."""

from __future__ import annotations

import numpy as np
import pytest

from ..runtime.errors import AbilityError, ContextFullError, OptionError
from ..runtime.interfaces import Floats, Session
from .subject import ENGINES, PATHS, TREE, Subject, rows_of, text


def a_fork_goes_on_alike_and_alone(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens, drafted = text(one, 40), text(one, 6, seed=2)
        for session in (one, other):
            session.forward(tokens[:20], n_logits=0)
        if "fork" not in one.abilities:
            with pytest.raises(AbilityError, match=ENGINES):
                one.fork()
            assert len(one.positions) == 20
            return
        fork = one.fork()
        assert fork is not one and fork.info == one.info and fork.max_context == one.max_context
        assert fork.positions.tolist() == list(range(20)) and fork.nbytes > 0
        expected = other.forward(tokens[20:26], n_logits=6).logits.copy()
        one.forward(drafted, n_logits=0)  # the fork does not see what its origin does,
        one.truncate(5)
        assert np.array_equal(fork.forward(tokens[20:26], n_logits=6).logits, expected)
        one.truncate(0)
        one.forward(tokens[:20], n_logits=0)
        fork.truncate(3)  # nor the origin what the fork does
        fork.forward(drafted, n_logits=0)
        assert np.array_equal(one.forward(tokens[20:26], n_logits=6).logits, expected)
        second = fork.fork()
        fork.close()
        assert second.positions.tolist() == list(range(9))
        assert len(second.forward(tokens[:2], n_logits=1).logits) == 1
        one.truncate(20)
        again = one.fork()
        one.close()
        assert np.array_equal(again.forward(tokens[20:26], n_logits=6).logits, expected)
        for session in (second, again):
            session.close()


def a_fork_has_the_gaps_too(subject: Subject) -> None:
    with subject.sessions(1) as (one,):
        if not {"fork", "evict_tokens"} <= one.abilities:
            return
        tokens = text(one, 40)
        one.forward(tokens[:30], n_logits=0)
        one.keep(rows_of(0, 1, 4, *range(17, 30)))
        fork = one.fork()
        assert fork.positions.tolist() == one.positions.tolist()
        ours, theirs = (s.forward(tokens[30:], n_logits=10).logits for s in (one, fork))
        assert np.array_equal(ours, theirs)
        fork.close()


def a_fork_may_take_some_entries_only(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if not {"fork", "evict_tokens"} <= one.abilities:
            return
        tokens = text(one, 40)
        choices = [rows_of(0, 1, 4, *range(17, 30))]
        if "evict_heads" in one.abilities:
            shape = (one.info.n_layers, one.info.kv_heads, 16)
            choices.append(np.broadcast_to(choices[0], shape) - (np.arange(16) == 2) * np.arange(shape[1])[:, None] % 2)
        for kept in choices:
            for session in (one, other):
                session.truncate(0)
                session.forward(tokens[:30], n_logits=0)
            fork = one.fork(kept, max_context=40)
            other.keep(kept)
            assert fork.max_context == 40 and fork.positions.tolist() == other.positions.tolist()
            assert one.positions.tolist() == list(range(30))
            ours, theirs = (s.forward(tokens[30:], n_logits=10).logits for s in (fork, other))
            assert np.array_equal(ours, theirs)
            fork.close()
        for impossible, limit, error in ((rows_of(3, 2), None, OptionError), (choices[0], 15, ContextFullError)):
            with pytest.raises(error):
                one.fork(impossible, max_context=limit)
        assert one.positions.tolist() == list(range(30))


def trees_are_settled_before_they_are_copied(subject: Subject) -> None:
    with subject.session() as one:
        tokens, drafted = text(one, 8), text(one, 6, seed=2)
        if "tree" not in one.abilities:
            return
        one.forward(tokens, n_logits=0)
        one.forward(drafted, n_logits=6, parents=TREE)
        if "fork" in one.abilities:
            with pytest.raises(OptionError, match="accept"):
                one.fork()
        if "save" in one.abilities:
            with pytest.raises(OptionError, match="accept"):
                one.save()
        one.accept(PATHS[0])
        assert len(one.positions) == 8 + len(PATHS[0])


def a_saved_cache_goes_on_with_the_same_bits(subject: Subject) -> None:
    with subject.sessions(3) as (one, other, used):
        tokens = text(one, 60)
        one.forward(tokens[:30], n_logits=0)
        if "save" not in one.abilities:
            for use in (one.save, lambda: one.restore(b"")):
                with pytest.raises(AbilityError, match=ENGINES):
                    use()
            assert len(one.positions) == 30
            return
        used.forward(text(one, 50, seed=7), n_logits=0)
        for kept in (np.arange(30), rows_of(0, 1, 4, *range(17, 30)), rows_of()):
            if len(kept) < 30 and "evict_tokens" not in one.abilities:
                continue
            one.keep(kept) if len(kept) < len(one.positions) else None
            state = one.save()
            assert isinstance(state, bytes)
            expected = one.forward(tokens[30:36], n_logits=6).logits.copy()
            one.truncate(30 if len(kept) else 0)
            for session in (other, used):
                session.restore(state)
                assert session.positions.tolist() == kept.tolist()
                assert np.array_equal(session.forward(tokens[30:36], n_logits=6).logits, expected)
                assert session.save() != state
            one.truncate(0)
            one.forward(tokens[:30], n_logits=0)


def what_cannot_be_restored_is_refused_before_anything_changes(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if "save" not in one.abilities:
            return
        tokens = text(one, 30)
        one.forward(tokens[:20], n_logits=0)
        state = one.save()
        other.forward(tokens[10:16], n_logits=0)
        expected = _next(other)
        middle = len(state) // 2
        for damaged in (
            b"",
            b"nonsense" * 40,
            state[:10],
            state[:-1],
            state[:middle],
            state + b"\0",
            state[:middle] + bytes([state[middle] ^ 1]) + state[middle + 1 :],
            state[:-1] + bytes([state[-1] ^ 128]),
            state.replace(one.info.digest.encode(), b"x" * len(one.info.digest)),
        ):
            with pytest.raises(OptionError):
                other.restore(damaged)
            assert other.positions.tolist() == list(range(6))
        assert np.array_equal(_next(other), expected)
    with subject.session(max_context=12) as small:
        small.forward(tokens[:4], n_logits=0)
        with pytest.raises(ContextFullError, match="max_context=20"):
            small.restore(state)
        assert small.positions.tolist() == [0, 1, 2, 3]


def _next(session: Session) -> Floats:
    n = len(session.positions)
    logits = session.forward(text(session, 4, seed=9), n_logits=4).logits.copy()
    session.truncate(n)
    return logits


CHECKS = (
    a_fork_goes_on_alike_and_alone,
    a_fork_has_the_gaps_too,
    a_fork_may_take_some_entries_only,
    trees_are_settled_before_they_are_copied,
    a_saved_cache_goes_on_with_the_same_bits,
    what_cannot_be_restored_is_refused_before_anything_changes,
)
