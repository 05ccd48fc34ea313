"""Steps and sessions: the same tokens give the same answers, and what is refused changes nothing."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from ..runtime.encoder_input import prepare
from ..runtime.errors import ContextFullError, EngineError, OptionError
from ..runtime.interfaces import Ability, Floats, Session, Weights
from .subject import Subject, parts, rows_of, run, text


def forward_gives_rows_of_logits(subject: Subject) -> None:
    with subject.session() as session:
        step = session.forward(text(session, 9), n_logits=4)
        assert step.logits.shape == (4, session.info.vocab_size)
        assert step.logits.dtype == np.float32
        assert (step.hidden, step.queries, step.attention) == (None, None, None)
        assert session.forward(text(session, 2), n_logits=0).logits.shape == (0, session.info.vocab_size)
        assert session.positions.tolist() == list(range(11))
        assert session.nbytes > 0


def logits_follow_the_whole_context(subject: Subject) -> None:
    """Every earlier token changes the answer: nothing is forgotten or doubled."""
    with subject.sessions(2) as (one, other):
        tokens = text(one, 12)
        last = one.forward(tokens, n_logits=1).logits.copy()
        for changed in (0, 5, 10):
            variant = tokens.copy()
            variant[changed] = (variant[changed] + 1) % one.info.vocab_size
            other.truncate(0)
            assert not np.array_equal(other.forward(variant, n_logits=1).logits, last)


def the_same_steps_give_the_same_bits(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 40)
        assert np.array_equal(run(one, tokens, 5), run(other, tokens, 5))
        one.truncate(0)
        other.truncate(0)
        assert np.array_equal(run(one, tokens[:20], 5), run(other, tokens[:20], 5))


def steps_of_any_width_agree(subject: Subject) -> None:
    with subject.session() as session:
        tokens = text(session, 48)
        whole = session.forward(tokens, n_logits=48).logits.copy()
        for width in (1, 2, 3, 7, 16, 31):
            session.truncate(0)
            subject.agree(run(session, tokens, width), whole)
            assert session.positions.tolist() == list(range(48))


def prefill_in_chunks_is_prefill_at_once(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 90)
        one.forward(tokens[:80], n_logits=0)
        expected = one.forward(tokens[80:], n_logits=10).logits.copy()
        for chunk in (5, 13, 32, 78):
            other.truncate(0)
            for part in parts(tokens[:80], chunk):
                other.forward(part, n_logits=0)
            subject.agree(other.forward(tokens[80:], n_logits=10).logits, expected)


def fewer_logit_rows_are_the_last_rows(subject: Subject) -> None:
    with subject.session() as session:
        tokens = text(session, 12)
        whole = session.forward(tokens, n_logits=12).logits.copy()
        for n in (1, 2, 5, 11):
            session.truncate(0)
            subject.agree(session.forward(tokens, n_logits=n).logits, whole[-n:])


def logits_stay_until_the_next_step(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 20)
        step = one.forward(tokens[:10], n_logits=3)
        before = step.logits.copy()
        other.forward(tokens[10:], n_logits=3)
        one.truncate(4)
        if "evict_tokens" in one.abilities:
            one.keep(rows_of(0, 2, 3))
        assert np.array_equal(step.logits, before)


def truncating_leaves_no_trace(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens, wrong = text(one, 30), text(one, 9, seed=1)
        one.forward(tokens[:20], n_logits=0)
        for n in (9, 1, 4):
            one.forward(wrong[:n], n_logits=n)
            one.truncate(20)
            assert len(one.positions) == 20
        one.forward(wrong, n_logits=0)
        one.truncate(15)
        one.truncate(25)  # nothing there
        assert one.positions.tolist() == list(range(15))
        other.forward(tokens[:20], n_logits=0)
        other.truncate(15)
        ours, theirs = (s.forward(tokens[15:], n_logits=15).logits for s in (one, other))
        assert np.array_equal(ours, theirs)


def a_long_context_is_like_a_short_one(subject: Subject) -> None:
    """Caches that grow keep what they hold."""
    with subject.sessions(2) as (one, other):
        n = min(one.max_context, 700)
        tokens = text(one, n)
        for part in parts(tokens[: n - 8], 100):
            one.forward(part, n_logits=0)
        for part in parts(tokens[: n - 8], 303):
            other.forward(part, n_logits=0)
        held = one.nbytes
        ours, theirs = (s.forward(tokens[n - 8 :], n_logits=8).logits for s in (one, other))
        subject.agree(ours, theirs)
        assert one.nbytes >= held > 0


def a_full_context_is_refused_before_anything_changes(subject: Subject) -> None:
    with subject.sessions(2, max_context=40) as (full, other):
        assert full.max_context == 40
        tokens = text(full, 41)
        for session in (full, other):
            session.forward(tokens[:38], n_logits=0)
        for n in (3, 41):
            with pytest.raises(ContextFullError, match="max_context"):
                full.forward(tokens[:n], n_logits=1)
        assert full.positions.tolist() == list(range(38))
        ours, theirs = (s.forward(tokens[38:40], n_logits=2).logits for s in (full, other))
        assert np.array_equal(ours, theirs)
        with pytest.raises(ContextFullError, match="max_context"):
            full.forward(tokens[40:], n_logits=1)
        full.truncate(39)
        assert len(full.forward(tokens[40:], n_logits=1).logits) == 1


def impossible_steps_are_refused_before_anything_changes(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 12)
        for session in (one, other):
            session.forward(tokens[:8], n_logits=0)
        v = one.info.vocab_size
        for bad in (rows_of(), rows_of(0, -1), rows_of(v), rows_of(2**40)):
            with pytest.raises(OptionError):
                one.forward(bad, n_logits=0)
        for n_logits in (-1, 3):
            with pytest.raises(OptionError):
                one.forward(tokens[:2], n_logits=n_logits)
        if "tree" in one.abilities:
            for parents in (rows_of(0, 0), rows_of(1, 0, 1), rows_of(0, 1, 1), rows_of(0, 0, 3), rows_of(0, -1, 0)):
                with pytest.raises(OptionError, match="parents"):
                    one.forward(tokens[:3], n_logits=3, parents=parents)
        with pytest.raises(OptionError):
            one.truncate(-1)
        assert one.positions.tolist() == list(range(8))
        ours, theirs = (s.forward(tokens[8:], n_logits=4).logits for s in (one, other))
        assert np.array_equal(ours, theirs)


def sessions_do_not_touch_each_other(subject: Subject) -> None:
    with subject.sessions(3) as (alone, one, other):
        tokens, others = text(alone, 40), text(alone, 40, seed=5)
        expected = run(alone, tokens, 4)
        rows = []
        for mine, theirs in zip(parts(tokens, 4), parts(others, 4), strict=True):
            rows.append(one.forward(mine, n_logits=4).logits.copy())
            other.forward(theirs, n_logits=4)
        assert np.array_equal(np.concatenate(rows), expected)
        found: dict[int, Floats] = {}

        def work(i: int, session: Session) -> None:
            session.truncate(0)
            found[i] = run(session, tokens, 4)

        threads = [threading.Thread(target=work, args=(i, s)) for i, s in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert np.array_equal(found[0], expected) and np.array_equal(found[1], expected)


def closing_frees_and_ends(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        tokens = text(one, 10)
        for session in (one, other):
            session.forward(tokens, n_logits=1)
        one.close()
        one.close()
        assert one.nbytes == 0 and len(one.positions) == 0
        uses: list[Callable[[], object]] = [
            lambda: one.forward(tokens, n_logits=1),
            lambda: one.truncate(0),
            lambda: one.accept(rows_of(0)),
        ]
        if "evict_tokens" in one.abilities:
            uses.append(lambda: one.keep(rows_of()))
        if "keys" in one.abilities:
            uses.append(lambda: one.keys_values(0))
        if "fork" in one.abilities:
            uses.append(lambda: one.fork())
        if "save" in one.abilities:
            state = other.save()
            uses += [lambda: one.save(), lambda: one.restore(state)]
        for use in uses:
            with pytest.raises(EngineError, match="closed"):
                use()
        assert len(other.forward(tokens, n_logits=2).logits) == 2


def closed_weights_open_nothing(subject: Subject) -> None:
    weights = subject.open()
    session = weights.session()
    prepare(session)
    session.forward(text(session, 3), n_logits=1)
    weights.close()
    weights.close()
    with pytest.raises(EngineError, match="closed"):
        weights.session()
    with pytest.raises(EngineError, match="closed"):
        session.forward(text(session, 3), n_logits=1)
    session.close()


def max_context_is_checked(subject: Subject) -> None:
    weights = subject.open()
    limit = weights.info.context_length
    assert weights.session().max_context == limit
    assert weights.session(5).max_context == 5
    for bad in (0, -1, limit + 1):
        with pytest.raises(OptionError, match=re.escape(str(limit))):
            weights.session(bad)
    weights.close()


def facts_are_there(subject: Subject) -> None:
    with subject.session() as session:
        weights = subject.open()
        assert isinstance(session, Session) and isinstance(weights, Weights)
        info = session.info
        assert info == weights.info
        assert info.n_heads % info.kv_heads == 0 and info.vocab_size > 2 and info.digest and info.engine
        assert list(info.widths) == sorted({w for w in info.widths if w > 0})
        assert session.abilities <= set(get_args(Ability))
        assert list(info.widths) == sorted(set(info.widths)) and min(info.widths, default=1) > 0
        weights.close()


CHECKS = (
    facts_are_there,
    forward_gives_rows_of_logits,
    logits_follow_the_whole_context,
    the_same_steps_give_the_same_bits,
    steps_of_any_width_agree,
    prefill_in_chunks_is_prefill_at_once,
    fewer_logit_rows_are_the_last_rows,
    logits_stay_until_the_next_step,
    truncating_leaves_no_trace,
    a_long_context_is_like_a_short_one,
    a_full_context_is_refused_before_anything_changes,
    impossible_steps_are_refused_before_anything_changes,
    sessions_do_not_touch_each_other,
    closing_frees_and_ends,
    closed_weights_open_nothing,
    max_context_is_checked,
)
