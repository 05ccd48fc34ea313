"""Measuring what steps cost, and which of them give the same bits."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ..encoder_input import prepare
from ..interfaces import Floats, Session, Tokens
from ..sampling.finite import require_finite
from .cost_curve import (
    _AGAIN,
    _FAR_STEPS,
    _FAR_WIDTH,
    _LEAST_FAR,
    _MOST_FAR,
    _N_CONTEXT,
    _N_TOKENS,
    _SWITCHES,
    _WORTH_A_SWITCH,
    CostCurve,
    slower_than_wider,
)
from .row_classes import PROBED_WIDTHS, RowClasses, RowRule, classify, narrow_pays, widest_of

_N_TOGETHER = 8  # rows of the wider step whose first row is looked at


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one short probe finds out about a session: its costs and its row classes."""

    curve: CostCurve
    rows: RowClasses
    busy: float = 0.0  # share of the processor that other programs used meanwhile

    @property
    def price_of_exactness(self) -> float:
        """Time of the narrowest step of the class in use, over the engine's bare single-row step; 1.2 is 20 % more."""
        return self.curve.seconds(self.rows.rule().minimum) / self.curve.seconds(1)

    @property
    def narrow_pays(self) -> bool:
        """Whether text that repeats nothing is better said in steps of one row than in the narrowest of the class."""
        one, narrowest = self.curve.seconds(1), self.curve.seconds(self.rows.rule().minimum)
        return narrow_pays(one, narrowest, self.curve.switch)


def calibrate(session: Session, widths: tuple[int, ...] = PROBED_WIDTHS) -> Calibration:
    """Time and compare steps of every width over the same tokens. The session must be empty and is left empty.

    widths: an engine that names its own (ModelInfo.widths) is asked for no others. An encoder-decoder session is given
        a stand-in for a source.
    """
    prepare(session)
    widths = session.info.widths or tuple(w for w in widths if w <= widest_of(session.info))
    yardstick = min((w for w in widths if w > 1), default=1)  # runs as many tokens as any width: all compare with it
    room = session.max_context - _N_CONTEXT
    most = max(widths) + max(*widths, _N_TOKENS)  # a last step may go beyond the rows that are compared
    tokens = (np.arange(_N_CONTEXT + most, dtype=np.int64) * 37 + 11) % session.info.vocab_size
    logits, seconds = {}, {}
    session.truncate(0)
    session.forward(tokens[:_N_CONTEXT], n_logits=0)
    for width in (w for w in widths if w <= room):
        n_rows = max(*widths, _N_TOKENS) if width == yardstick else _N_TOKENS
        n_steps = min(max(-(-n_rows // width), 2), room // width)
        rows, times = [], []
        for start in range(_N_CONTEXT, _N_CONTEXT + n_steps * width, width):
            began = time.perf_counter()
            step = session.forward(tokens[start : start + width], n_logits=width)
            times.append(time.perf_counter() - began)
            rows.append(step.logits.copy())
        session.truncate(_N_CONTEXT)
        logits[width] = np.concatenate(rows)
        require_finite(logits[width], session.info)
        seconds[width] = min(times)  # a first step at a width is slower, and so is one beside another program's
    classes = classify(logits, session.info.widths, session.info.alike_from, widest_of(session.info))
    if classes.drafts and 1 in logits and not _rows_stand_alone(session, tokens, logits, classes.rule()):
        classes = RowClasses(((1,),), session.info.widths, classes.widest)
    timed = list(seconds)
    for width in (*reversed(timed), *timed):  # in turns: what stalled one pass has not stalled the others
        seconds[width] = min(seconds[width], _fastest_s(session, tokens[:width], _N_CONTEXT, 1))
    for _ in range(_AGAIN):
        for width in slower_than_wider(seconds):
            seconds[width] = min(seconds[width], _fastest_s(session, tokens[:width], _N_CONTEXT, 2))
    switch = _switch_s(session, tokens, yardstick, seconds)
    fixed = bool(session.info.widths)  # such a device reads a whole window, whatever is in it
    entry_s = _entry_s(session, _FAR_WIDTH) if _FAR_WIDTH in seconds and not fixed else 0.0
    session.truncate(0)
    ordered = np.array(sorted(seconds))
    curve = CostCurve(ordered, np.array([seconds[w] for w in ordered]), switch, entry_s)
    return Calibration(curve, classes)


def _rows_stand_alone(session: Session, tokens: Tokens, logits: dict[int, Floats], rule: RowRule) -> bool:
    """Whether a row has the same bits whatever stands behind it in its step.

    It has not where all rows of a step are rounded by one scale: then a draft changes the row before it. Where no other
    width has shown that a row's place in its step does not matter, that is looked at, too.
    logits: of the tokens behind the first _N_CONTEXT, by width of the steps.
    """
    least = rule.fit(2)
    widths = {least, max(rule.floor(_N_TOGETHER) or least, least)} & logits.keys()
    found = all(_followed_by_others(session, tokens, logits[width], width) for width in widths)
    if found and rule.minimum == rule.maximum:
        found = _shifted(session, tokens, logits[rule.minimum], rule.minimum)
    session.truncate(_N_CONTEXT)
    return found


def _followed_by_others(session: Session, tokens: Tokens, expected: Floats, width: int) -> bool:
    """Whether first rows of steps are the same before other rows. expected: of steps of this width."""
    for place in range(0, min(2 * width, len(expected) - width + 1), width):
        start = _N_CONTEXT + place
        others = (tokens[start + 1 : start + width] * 5 + 3) % session.info.vocab_size
        step = session.forward(np.concatenate([tokens[start : start + 1], others]), n_logits=width)
        alone = np.array_equal(step.logits[0], expected[place])
        session.truncate(start)
        if not alone:
            return False
        session.forward(tokens[start : start + width], n_logits=0)
    session.truncate(_N_CONTEXT)
    return True


def _shifted(session: Session, tokens: Tokens, expected: Floats, width: int) -> bool:
    """Whether rows are the same in steps that begin one row later."""
    session.forward(tokens[_N_CONTEXT : _N_CONTEXT + width], n_logits=0)
    session.truncate(_N_CONTEXT + 1)
    for place in range(1, len(expected) - width + 1, width):
        start = _N_CONTEXT + place
        rows = session.forward(tokens[start : start + width], n_logits=width).logits
        if not np.array_equal(rows, expected[place : place + width]):
            return False
    return True


def _switch_s(session: Session, tokens: Tokens, narrow: int, seconds: dict[int, float]) -> float:
    """Seconds that a step takes longer after one of another width; 0 where that is next to nothing."""
    wide = max((w for w in seconds if narrow < w <= 8), default=0)
    if not wide or narrow not in seconds:
        return 0.0
    more = []
    for width in (narrow, wide) * _SWITCHES:
        began = time.perf_counter()
        session.forward(tokens[_N_CONTEXT : _N_CONTEXT + width], n_logits=width)
        more.append(time.perf_counter() - began - seconds[width])
        session.truncate(_N_CONTEXT)
    # The least of each direction, as other programs only ever add; what came before the first step is not known.
    switch = max((min(more[2::2]) + min(more[1::2])) / 2, 0.0)
    return switch if switch > _WORTH_A_SWITCH * seconds[narrow] else 0.0


def _entry_s(session: Session, width: int) -> float:
    """Seconds that a step takes longer for each row and entry it sees; 0 where the session has no room to tell."""
    far = session.max_context - width
    if far - _N_CONTEXT < _LEAST_FAR:
        return 0.0
    tokens = (np.arange(far, dtype=np.int64) * 37 + 11) % session.info.vocab_size
    near_s = _fastest_s(session, tokens[:width], _N_CONTEXT, _FAR_STEPS)
    session.forward(tokens[_N_CONTEXT:], n_logits=0)
    far_s = _fastest_s(session, tokens[:width], far, _FAR_STEPS)
    more = min(max(far_s - near_s, 0.0), _MOST_FAR * near_s)
    return more / (width * (far - _N_CONTEXT))


def _fastest_s(session: Session, tokens: Tokens, n_entries: int, n_steps: int) -> float:
    """Seconds of the fastest step over these tokens behind the entries that the session has and keeps."""
    times = []
    for _ in range(n_steps):
        began = time.perf_counter()
        session.forward(tokens, n_logits=len(tokens))
        times.append(time.perf_counter() - began)
        session.truncate(n_entries)
    return min(times)
