"""Encoder-decoder sessions: the source is read once and then belongs to every step. Decoder-only ones refuse it."""

from __future__ import annotations

import numpy as np
import pytest

from ..runtime.errors import AbilityError, ContextFullError, EngineError, OptionError
from ..runtime.interfaces import Floats, ModelInfo, Tokens
from .subject import ENGINES, PATHS, TREE, Subject, rows_of, run, text


def sources_are_for_encoder_decoder_models(subject: Subject) -> None:
    with subject.session() as session:
        assert ("encode" in session.abilities) == (session.info.encoder is not None)
        if session.info.encoder is None:
            session.forward(text(session, 4), n_logits=0)
            with pytest.raises(AbilityError, match=ENGINES):
                session.encode(text(session, 3))
            assert session.positions.tolist() == [0, 1, 2, 3]
        else:
            start = np.array(session.info.encoder.decoder_start)
            assert len(start) and start.min() >= 0 and start.max() < session.info.vocab_size


def encoding_empties_the_cache_and_forgets_the_source_before(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if one.info.encoder is None:
            return
        first, second = (a_source(one.info, seed) for seed in (3, 4))
        tokens = text(one, 12)
        one.encode(first)
        assert len(one.positions) == 0
        expected = run(one, tokens, 4)
        other.encode(second)
        assert not np.array_equal(run(other, tokens, 4), expected)  # every source has answers of its own
        other.encode(first)
        assert len(other.positions) == 0
        assert np.array_equal(run(other, tokens, 4), expected)
        one.truncate(0)  # forgets the answer, not the source
        assert np.array_equal(run(one, tokens, 4), expected)
        shorter = first[..., : max(first.shape[-1] // 2, 1)]
        if one.info.encoder.source_kind == "text":
            other.encode(shorter)
            assert not np.array_equal(run(other, tokens, 4), expected)


def a_tree_need_not_be_settled_before_another_source(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if not {"encode", "tree"} <= one.abilities:
            return
        source, tokens = a_source(one.info, 3), text(one, 8)
        one.forward(text(one, 6, seed=2), n_logits=6, parents=TREE)
        for session in (one, other):
            session.encode(source)
        assert np.array_equal(run(one, tokens, 4), run(other, tokens, 4))


def what_cannot_be_read_is_refused_before_anything_changes(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        encoder = one.info.encoder
        if encoder is None:
            return
        tokens = text(one, 8)
        for session in (one, other):
            session.forward(tokens[:4], n_logits=0)
        bad: list[Tokens | Floats] = [rows_of(), np.zeros((2, 2, 2), dtype=np.float32)]
        if encoder.source_kind == "text":
            bad += [rows_of(-1), rows_of(0, one.info.vocab_size), np.zeros((4, 9), dtype=np.float32)]
        for source in bad:
            with pytest.raises(OptionError):
                one.encode(source)
        if encoder.source_kind == "text" and encoder.source_limit is not None:
            with pytest.raises(ContextFullError, match=str(encoder.source_limit)):
                one.encode(np.zeros(encoder.source_limit + 1, dtype=np.int64))
        assert one.positions.tolist() == [0, 1, 2, 3]
        ours, theirs = (s.forward(tokens[4:], n_logits=4).logits for s in (one, other))
        assert np.array_equal(ours, theirs)


def steps_need_a_source(subject: Subject) -> None:
    weights = subject.open()
    session = weights.session()
    if session.info.encoder is not None:
        with pytest.raises(OptionError, match="source"):
            session.forward(text(session, 3), n_logits=1)
        assert len(session.positions) == 0
        session.encode(a_source(session.info, 3))
        assert len(session.forward(text(session, 3), n_logits=1).logits) == 1
        session.close()
        with pytest.raises(EngineError, match="closed"):
            session.encode(a_source(session.info, 3))
    session.close()
    weights.close()


def a_fork_shares_the_source_until_it_reads_another(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if not {"encode", "fork"} <= one.abilities:
            return
        first, second, tokens = a_source(one.info, 3), a_source(one.info, 4), text(one, 16)
        for session in (one, other):
            session.encode(first)
            session.forward(tokens[:8], n_logits=0)
        fork = one.fork()
        expected = other.forward(tokens[8:], n_logits=8).logits.copy()
        assert np.array_equal(fork.forward(tokens[8:], n_logits=8).logits, expected)
        fork.encode(second)
        assert np.array_equal(one.forward(tokens[8:], n_logits=8).logits, expected)  # what a fork reads is its own
        other.encode(second)
        assert np.array_equal(run(fork, tokens, 4), run(other, tokens, 4))
        again = fork.fork()
        fork.close()
        assert len(again.forward(tokens[:2], n_logits=1).logits) == 1
        again.close()


def a_saved_answer_knows_its_source(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if not {"encode", "save"} <= one.abilities:
            return
        tokens = text(one, 16)
        one.encode(a_source(one.info, 3))
        one.forward(tokens[:8], n_logits=0)
        state = one.save()
        expected = one.forward(tokens[8:], n_logits=8).logits.copy()
        other.restore(state)
        assert np.array_equal(other.forward(tokens[8:], n_logits=8).logits, expected)


def trees_and_rollback_keep_the_source(subject: Subject) -> None:
    with subject.sessions(2) as (one, other):
        if not {"encode", "tree"} <= one.abilities:
            return
        source, tokens, drafted = a_source(one.info, 3), text(one, 16), text(one, 6, seed=2)
        for session in (one, other):
            session.encode(source)
            session.forward(tokens[:8], n_logits=0)
        tree = one.forward(drafted, n_logits=6, parents=TREE).logits.copy()
        one.accept(PATHS[1])
        chain = other.forward(drafted[PATHS[1]], n_logits=3).logits
        subject.agree(tree[PATHS[1]], chain)
        for session in (one, other):
            session.truncate(8)
        ours, theirs = (s.forward(tokens[8:], n_logits=8).logits for s in (one, other))
        assert np.array_equal(ours, theirs)


def a_source(info: ModelInfo, seed: int) -> Tokens | Floats:
    """A random source that this model can read; every engine gets the same for one model."""
    encoder, rng = info.encoder, np.random.default_rng(seed)
    assert encoder is not None
    if encoder.source_kind == "audio":
        return rng.normal(0.0, 1.0, (encoder.bins or 1, encoder.source_limit or 40)).astype(np.float32)
    return rng.integers(0, info.vocab_size, min(40, encoder.source_limit or 40), dtype=np.int64)


CHECKS = (
    sources_are_for_encoder_decoder_models,
    encoding_empties_the_cache_and_forgets_the_source_before,
    a_tree_need_not_be_settled_before_another_source,
    what_cannot_be_read_is_refused_before_anything_changes,
    steps_need_a_source,
    a_fork_shares_the_source_until_it_reads_another,
    a_saved_answer_knows_its_source,
    trees_and_rollback_keep_the_source,
)
