"""Measured time of a forward pass, T(n, S) for n rows that see S entries.

The curve is neither linear nor convex in n and belongs to one engine, build, model, device and thread count, so it is
measured at first load and remembered. Every step that runs refines it, for as long as the process lives: what a busy
hour has taught is not kept. In S it is a line: attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import mul

import numpy as np

from ..interfaces import Indices, ModelInfo, Probs

_N_CONTEXT = 8  # entries before the probe's steps
_FAR_WIDTH = 16  # a step that is timed a second time, behind many entries,
_FAR_STEPS = 3  # so often; the fastest counts, as other programs only ever add
_MOST_FAR = 0.5  # of the step behind few entries; a few hundred that cost more are another program's doing
_LEAST_FAR = 64  # entries apart that show what an entry costs
_N_TOKENS = 12  # tokens run at least in steps of every width
_DIP = 1.4  # a step may take so many times what one of more rows takes: of llama.cpp's, three took 1.2 times four
_AGAIN = 3  # times that widths which take more than that are timed once more
_SPEED_RATE = 0.1  # how fast the machine's present speed is followed
_WIDTH_RATE = 0.03  # and how fast one width's own error is followed, when it was seen a step ago
_SWITCH_RATE = 0.05
_STALE_RATE = 0.5  # and when it was seen long ago
_WORTH_CORRECTING = 0.005  # smaller corrections are put together first: a dozen widths are moved at a time
_SWITCHES = 4  # times that the probe goes from a narrow step to a wide one and back
_WORTH_A_SWITCH = 0.05  # of a narrow step; what a switch costs less is noise
_REACH = 8  # widths apart at which one's error says next to nothing about another's
_MOST_CORRECTION = 8.0  # a curve that is further off than this belongs to another machine
_RECENT = 8  # steps since a width was run behind one of its own, so that more time means a switch


class CostCurve:
    """Seconds of a forward pass by width, here and now.

    T(n, S) = speed * (correction[n] * base[n] + entry_s * n * S): the base is measured at a short context, `speed`
    follows what every width has in common (other programs, warmth) and `correction` what one width has not.

    widths: (m,) ascending, measured; base: (m,) seconds of a step that follows one of the same width. Widths between
    them are interpolated. switch: seconds that a step takes longer when the one before it had another width; engines
    that plan a graph for each shape have such steps. entry_s: seconds for each row and entry it sees; only
    a probe at two lengths tells it from the rest, so steps do not change it.
    n_entries: what the next step sees, to be set before the curve is asked about it. Lists and floats: of a few dozen
    numbers they are faster than arrays, and all this happens in every round.
    """

    def __init__(self, widths: Indices, base: Probs, switch: float = 0.0, entry_s: float = 0.0) -> None:
        self.widths = widths
        self.switch = switch
        self.entry_s = entry_s
        self.speed = 1.0
        self.n_entries = _N_CONTEXT
        self._last_width = 0
        self._measured = base
        self._base: list[float] = np.interp(np.arange(int(widths[-1]) + 1), widths, base).tolist()
        self._correction = [1.0] * len(self._base)
        self._grid = self._base.copy()  # correction * base
        self._step = 0
        self._pending = [0.0] * len(self._base)  # of the logarithm of each correction
        self._seen = [0] * len(self._base)  # step at which a width was run last,
        self._steady = [-_RECENT] * len(self._base)  # and behind one of its own
        run = int(widths[-1] - widths[0])
        self._tail = max(float((base[-1] - base[0]) / run), 0.0) if run else float(base[0])
        self._near = [math.exp(-abs(apart) / 2.0) for apart in range(-_REACH, _REACH + 1)]

    def seconds(self, width: int) -> float:
        """Expected seconds of one step."""
        last = len(self._grid) - 1
        if width <= last:
            return self.speed * (self._grid[width] + width * self._row_s)
        # Beyond the widest that was measured, the slope of the whole curve goes on.
        beyond = (width - last) * self._tail * self._correction[last]
        return self.speed * (self._grid[last] + beyond + width * self._row_s)

    def seconds_of(self, widths: Sequence[int]) -> list[float]:
        """The same of each of these ascending widths."""
        if widths[-1] >= len(self._grid):
            return [self.seconds(width) for width in widths]
        speed, row_s, steps = self.speed, self._row_s, map(self._grid.__getitem__, widths)
        if not row_s:
            return [speed * seconds for seconds in steps]
        return [speed * (seconds + width * row_s) for seconds, width in zip(steps, widths, strict=True)]

    @property
    def n_entries(self) -> int:
        return self._n_entries

    @n_entries.setter
    def n_entries(self, n: int) -> None:
        self._n_entries = n
        self._row_s = self.entry_s * max(n - _N_CONTEXT, 0)  # that a row takes for the entries beyond the probe's

    def observe(self, width: int, n_entries: int, seconds: float) -> None:
        """Learn from a step. One slow step moves little: other programs use the machine too. What has not been seen
        for long moves more, and takes its neighbours along.

        A step of another width than the one before says something about the switch, unless its width alone is not well
        known: where drafts are rare, each of them follows a plain step.
        """
        self.n_entries = n_entries
        expected = self.seconds(width)
        before, self._last_width = self._last_width, width
        switched = self.switch > 0 and before not in (0, width)
        self._step += 1
        if switched and (self._well_known(width) or not self._well_known(before)):
            more = min(max((seconds - expected) / self.speed, -self.switch), expected / self.speed)
            self.switch = max(self.switch + _SWITCH_RATE * (more - self.switch), 0.0)
            return
        if switched:
            expected += self.speed * self.switch
        error = math.log(min(max(seconds / expected, 0.5), 2.0))
        if not switched:
            self.speed *= math.exp(_SPEED_RATE * error)
        if width < len(self._base):
            self._correct(width, error)
            if not switched:
                self._steady[width] = self._step

    def _well_known(self, width: int) -> bool:
        return width < len(self._base) and self._step - self._steady[width] <= _RECENT

    def _correct(self, width: int, error: float) -> None:
        """Small errors count as large ones do: were they left out, a few slow steps among many would raise one width
        and, since the present speed makes up for it, lower all others."""
        rate = min(1.0 - (1.0 - _WIDTH_RATE) ** (self._step - self._seen[width]), _STALE_RATE)
        self._seen[width] = self._step
        self._pending[width] += rate * error
        if abs(self._pending[width]) > _WORTH_CORRECTING:
            # Neighbours move with this width, never further, so that a width nobody runs cannot drift away alone.
            first, end = max(width - _REACH, 0), min(width + _REACH + 1, len(self._base))
            near = self._near[first - width + _REACH :]
            moves = [math.exp(self._pending[width] * share) for share in near]
            moved = list(map(mul, self._correction[first:end], moves))
            if max(moved) > _MOST_CORRECTION or min(moved) < 1 / _MOST_CORRECTION:
                moved = [min(max(x, 1 / _MOST_CORRECTION), _MOST_CORRECTION) for x in moved]
            self._correction[first:end] = moved
            self._grid[first:end] = map(mul, moved, self._base[first:end])
            self._pending[width] = 0.0

    def to_facts(self) -> dict[str, list[float]]:
        """What was measured, to keep between runs."""
        return {
            "widths": [float(w) for w in self.widths],
            "measured": [float(b) for b in self._measured],
            "switch": [self.switch],
            "entry_s": [self.entry_s],
        }

    @property
    def measured(self) -> dict[int, float]:
        """Seconds of a step by width, as they were measured."""
        return dict(zip(self.widths.tolist(), self._measured.tolist(), strict=True))

    @classmethod
    def from_facts(cls, facts: dict[str, list[float]]) -> CostCurve:
        """The curve that was kept. Raises KeyError, TypeError or ValueError where the facts are not a curve."""
        widths, base = np.array(facts["widths"], dtype=np.int64), np.array(facts["measured"], dtype=np.float64)
        ordered = len(widths) and len(widths) == len(base) and (np.diff(widths) > 0).all() and widths[0] >= 1
        if not ordered or not ((base > 0) & (base < 1000.0)).all():
            raise ValueError("not a cost curve")
        (switch,), (entry_s,) = facts["switch"], facts["entry_s"]
        if not (0.0 <= float(switch) < 1000.0 and 0.0 <= float(entry_s) < 1.0):
            raise ValueError("not a cost curve")
        return cls(widths, base, float(switch), float(entry_s))


def slower_than_wider(step_s: Mapping[int, float]) -> list[int]:
    """The widths, ascending, whose step took clearly longer than one of more rows: no kernel does that, so other
    programs did."""
    expensive, cheapest = [], math.inf
    for width in sorted(step_s, reverse=True):
        if step_s[width] > _DIP * cheapest:
            expensive.append(width)
        cheapest = min(cheapest, step_s[width])
    return expensive[::-1]


def facts_key(info: ModelInfo) -> str:
    """File name under which what was measured is kept: everything that changes costs or bits."""
    alike = f"alike from {info.alike_from}" if info.alike_from > 1 else ""
    parts = (info.digest[:16], info.engine, info.engine_version, info.device, str(info.threads), info.settings, alike)
    return "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in p) for p in parts if p)
