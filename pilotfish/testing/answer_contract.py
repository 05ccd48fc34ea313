"""Right answers, and the widths of a step that give the same bits."""

from __future__ import annotations

import numpy as np

from ..runtime.interfaces import Floats, Indices, Observation, Tokens
from .subject import PATHS, TREE, Subject, near, parts, run, text

# Around multiples of 16, 32, 64 and 128: where kernels cut rows into tiles, the last tile may hold a single row.
WIDE = (31, 33, 48, 49, 63, 64, 65, 97, 127, 128, 129, 130, 192, 193, 255, 256, 257)


def answers_are_those_of_the_reference(subject: Subject) -> None:
    if subject.reference is None:
        return
    theirs = Subject(subject.reference, 0.0)
    with subject.session() as one, theirs.session() as other:
        tokens, drafted = text(one, 50), text(one, 6, seed=2)
        pairs: list[tuple[Floats, Floats]] = []

        def both(part: Tokens, parents: Indices | None = None) -> None:
            ours, judged = (s.forward(part, n_logits=len(part), parents=parents).logits.copy() for s in (one, other))
            pairs.append((ours, judged))

        both(tokens[:30])
        for width in (1, 2, 3, 5):
            both(tokens[30 : 30 + width])
            for session in (one, other):
                session.truncate(30)
        if "tree" in one.abilities:
            both(drafted, TREE)
            for session in (one, other):
                session.accept(PATHS[0])
            both(tokens[30:34])
        if "evict_tokens" in one.abilities:
            for session in (one, other):
                session.keep(np.flatnonzero(np.arange(len(session.positions)) % 4 != 2))
            both(tokens[34:40])
            both(tokens[40:41])
            if "tree" in one.abilities:
                both(drafted, TREE)
        for ours, judged in pairs:
            near(ours, judged, subject.reference_noise)


def what_is_observed_is_that_of_the_reference(subject: Subject) -> None:
    if subject.reference is None:
        return
    with subject.session() as one, Subject(subject.reference, 0.0).session() as other:
        names: tuple[Observation, ...] = ("hidden", "queries", "attention")
        shared = frozenset(name for name in names if name in one.abilities & other.abilities)
        tokens = text(one, 20)
        ours, theirs = (s.forward(tokens, n_logits=0, observe=shared) for s in (one, other))
        for name in shared:
            near(getattr(ours, name), getattr(theirs, name), subject.reference_noise)
        if "keys" in one.abilities & other.abilities:
            for layer in range(one.info.n_layers):
                for x, y in zip(one.keys_values(layer), other.keys_values(layer), strict=True):
                    near(x, y, subject.reference_noise)


def widths_of_a_row_class_give_equal_bits(subject: Subject) -> None:
    """Whatever the past, and however the prompt was processed."""
    if not subject.row_classes:
        return
    with subject.session() as session:
        room = min(session.max_context, max(subject.pasts) + 36)
        pasts = [past for past in subject.pasts if past + 36 <= room]
        tokens = text(session, room)
        for row_class in subject.row_classes:
            for past in pasts:
                expected: Floats | None = None
                for i, width in enumerate(row_class):
                    session.truncate(0)
                    chunk = (7, 32, 64, 100)[i % 4] if min(row_class) > 1 else 64
                    for part in chunks_of(tokens[:past], chunk, min(row_class)):
                        session.forward(part, n_logits=0)
                    n = max(1, 36 // width) * width
                    logits = run(session, tokens[past : past + min(n, 36)], width)
                    logits = logits[: len(logits) // width * width]  # a narrower last step is of no class
                    expected = logits if expected is None or len(logits) > len(expected) else expected
                    shared = min(len(expected), len(logits))
                    assert np.array_equal(logits[:shared], expected[:shared]), (width, past)


def a_row_is_the_same_whatever_follows_it(subject: Subject) -> None:
    """And wherever it stands in a step: else a draft that is rejected would have changed the row before it."""
    with subject.session() as session:
        tokens, others = text(session, 16), text(session, 16, seed=6)
        for row_class in (widths for widths in subject.row_classes if len(widths) > 1):
            step = min(width for width in row_class if width > 1)
            session.truncate(0)
            expected = run(session, tokens[: len(tokens) // step * step], step)
            for width in {2, 5, 16} & set(row_class):
                for place in (9, 4):  # from the last on: each finds those before it in the cache
                    session.truncate(place)
                    rows = session.forward(np.append(tokens[place], others[1:width]), n_logits=width).logits
                    assert np.array_equal(rows[0], expected[place]), (width, place)
                session.truncate(0)
                run(session, tokens[: len(tokens) // step * step], step)


def chunks_of(tokens: Tokens, chunk: int, minimum: int) -> list[Tokens]:
    """Parts of `chunk` tokens, none below the minimum."""
    made = parts(tokens, chunk)
    if len(made) > 1 and len(made[-1]) < minimum:
        made[-2:] = [np.concatenate(made[-2:])]
    return made


def any_logit_rows_of_a_row_class_give_equal_bits(subject: Subject) -> None:
    """Fewer rows of logits are a narrower last multiplication, so the same classes hold for them."""
    with subject.session() as session:
        tokens = text(session, 24)
        for row_class in subject.row_classes:
            if len(row_class) == 1:
                continue
            session.truncate(0)
            whole = session.forward(tokens, n_logits=24).logits.copy()
            for n in (w for w in row_class if w < 24):
                session.truncate(0)
                assert np.array_equal(session.forward(tokens, n_logits=n).logits, whole[-n:]), n


def wide_steps_are_of_the_row_class(subject: Subject) -> None:
    """However many rows a step has, and however many of them are read: prompts are run in wide ones."""
    with subject.session() as session:
        tokens = text(session, min(session.max_context, max(WIDE) + 8))
        for row_class in (widths for widths in subject.row_classes if len(widths) > 1):
            step = next(width for width in row_class if width > 1)
            session.truncate(0)
            expected = run(session, tokens[: len(tokens) // step * step], step)
            for width in (w for w in WIDE if w + step <= len(expected)):
                session.truncate(0)
                n_logits = width if width % 2 else 0  # read where a row is left over, else as prompts are
                rows = session.forward(tokens[:width], n_logits=n_logits).logits
                assert np.array_equal(rows, expected[:n_logits]), width
                rows = session.forward(tokens[width : width + step], n_logits=step).logits
                assert np.array_equal(rows, expected[width : width + step]), width


CHECKS = (
    answers_are_those_of_the_reference,
    what_is_observed_is_that_of_the_reference,
    widths_of_a_row_class_give_equal_bits,
    a_row_is_the_same_whatever_follows_it,
    any_logit_rows_of_a_row_class_give_equal_bits,
    wide_steps_are_of_the_row_class,
)
