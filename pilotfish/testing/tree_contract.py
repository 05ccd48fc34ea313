"""Trees: every path as if it had been run alone, and one of them accepted."""

from __future__ import annotations

import numpy as np
import pytest

from ..runtime.errors import AbilityError, OptionError
from ..runtime.interfaces import Session
from .subject import ENGINES, PATHS, TREE, Subject, rows_of, text


def a_tree_is_its_paths_run_apart(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if "tree" not in one.abilities:
            refuses_trees(one)
            return
        tokens, drafted = text(one, 20), text(one, 6, seed=2)
        one.forward(tokens, n_logits=0)
        other.forward(tokens, n_logits=0)
        tree = one.forward(drafted, n_logits=6, parents=TREE).logits.copy()
        assert len(one.positions) == 26
        for path in PATHS:
            subject.agree(tree[path], other.forward(drafted[path], n_logits=len(path)).logits)
            other.truncate(20)
        one.truncate(20)
        fewer = one.forward(drafted, n_logits=2, parents=TREE).logits
        subject.agree(fewer, tree[-2:])


def refuses_trees(session: Session) -> None:
    with pytest.raises(AbilityError, match=ENGINES):
        session.forward(text(session, 6), n_logits=6, parents=TREE)
    assert len(session.positions) == 0


def an_accepted_path_is_all_that_stays(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if "tree" not in one.abilities:
            return  # a_tree_is_its_paths_run_apart says what happens then
        tokens, drafted, after = text(one, 20), text(one, 6, seed=2), text(one, 5, seed=3)
        for path in (*PATHS, rows_of(0), rows_of(0, 1), rows_of(0, 3)):
            for session in (one, other):
                session.truncate(0)
                session.forward(tokens, n_logits=0)
            one.forward(drafted, n_logits=6, parents=TREE)
            one.accept(path)
            other.forward(drafted[path], n_logits=0)
            assert one.positions.tolist() == other.positions.tolist() == list(range(20 + len(path)))
            ours, theirs = (s.forward(after, n_logits=5).logits for s in (one, other))
            subject.agree(ours, theirs)


def a_path_of_a_chain_is_its_head(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 30)
        one.forward(tokens[:10], n_logits=0)
        one.accept(rows_of(0, 1, 2))
        other.forward(tokens[:10], n_logits=0)
        other.truncate(3)
        assert one.positions.tolist() == [0, 1, 2]
        ours, theirs = (s.forward(tokens[10:], n_logits=20).logits for s in (one, other))
        assert np.array_equal(ours, theirs)


def only_paths_are_accepted(subject: Subject) -> None:
    with subject.session() as session:
        with pytest.raises(OptionError):
            session.accept(rows_of(0))  # no step yet
        session.forward(text(session, 6), n_logits=0)
        for rows in (rows_of(), rows_of(1, 2), rows_of(0, 2), rows_of(0, 0), rows_of(0, 1, 2, 3, 4, 5, 6)):
            with pytest.raises(OptionError):
                session.accept(rows)
        assert session.positions.tolist() == list(range(6))
        session.accept(rows_of(0, 1))
        with pytest.raises(OptionError):
            session.accept(rows_of(0))  # that step is settled
        if "tree" not in session.abilities:
            return
        session.forward(text(session, 6), n_logits=0, parents=TREE)
        for rows in (rows_of(0, 2), rows_of(0, 1, 3), rows_of(0, 3, 1), rows_of(3, 5), rows_of(0, 1, 2, 4, 5)):
            with pytest.raises(OptionError):
                session.accept(rows)
        assert len(session.positions) == 8


def a_tree_is_settled_before_anything_else(subject: Subject) -> None:
    """Entries of a tree do not lie in the order of their positions: to go on from there would be nonsense."""
    with subject.sessions(2) as (one, other):
        if "tree" not in one.abilities:
            return
        tokens, drafted = text(one, 12), text(one, 6, seed=2)
        for session in (one, other):
            session.forward(tokens[:6], n_logits=0)
        one.forward(drafted, n_logits=0, parents=TREE)
        with pytest.raises(OptionError, match="accept"):
            one.forward(tokens[6:], n_logits=6)
        with pytest.raises(OptionError, match="accept"):
            one.truncate(8)  # two rows stand at position 7
        one.truncate(7)  # row 0 alone is left
        other.forward(drafted[:1], n_logits=0)
        assert one.positions.tolist() == list(range(7))
        ours, theirs = (s.forward(tokens[6:], n_logits=6).logits for s in (one, other))
        subject.agree(ours, theirs)


def a_chain_written_as_a_tree_is_the_chain(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if "tree" not in one.abilities:
            return
        tokens = text(one, 14)
        for session in (one, other):
            session.forward(tokens[:8], n_logits=0)
        ours = one.forward(tokens[8:], n_logits=6, parents=rows_of(0, 0, 1, 2, 3, 4)).logits
        subject.agree(ours, other.forward(tokens[8:], n_logits=6).logits)
        assert one.positions.tolist() == list(range(14))
        one.truncate(10)  # nothing branched, so nothing has to be settled
        assert one.positions.tolist() == list(range(10))


def random_trees_again_and_again(subject: Subject) -> None:
    """As in decoding: every round a random tree, of which a random path is accepted."""
    with subject.sessions(2) as (one, other):
        if "tree" not in one.abilities:
            return
        rng = np.random.default_rng(0)
        for i in range(9):
            n = int(rng.integers(1, 9))
            parents = rows_of(0, *(int(rng.integers(0, row)) for row in range(1, n)))
            path = [int(rng.integers(0, n))]
            while path[0]:
                path.insert(0, int(parents[path[0]]))
            tokens, rows = text(one, n, seed=i), np.array(path)
            ours = one.forward(tokens, n_logits=n, parents=parents).logits[path[-1:]].copy()
            one.accept(rows)
            subject.agree(ours, other.forward(tokens[rows], n_logits=1).logits)
            assert np.array_equal(one.positions, other.positions)


CHECKS = (
    a_tree_is_its_paths_run_apart,
    a_chain_written_as_a_tree_is_the_chain,
    an_accepted_path_is_all_that_stays,
    a_path_of_a_chain_is_its_head,
    only_paths_are_accepted,
    a_tree_is_settled_before_anything_else,
    random_trees_again_and_again,
)
