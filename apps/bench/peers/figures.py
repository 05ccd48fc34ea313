"""What is reported of the answers, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from .contestants import OURS, PLAIN
from .measure import Row, Sample

OVERALL = "all sets"


def figures(rows: Sequence[Row], sets: Sequence[str], *, greedy: bool) -> dict[str, object]:
    """By set and, where there are several, over all of them: every row that ran. sets: of every prompt, in order."""
    names = list(dict.fromkeys(sets))
    groups = {name: [i for i, each in enumerate(sets) if each == name] for name in names}
    if len(names) > 1:
        groups[OVERALL] = list(range(len(sets)))
    return {name: _group([row for row in rows if row.ran], prompts, greedy) for name, prompts in groups.items()}


def _group(rows: list[Row], prompts: list[int], greedy: bool) -> dict[str, object]:
    base = _fastest_plain(rows, prompts)
    return {
        "prompts": len(prompts),
        "fastest_plain": None if base is None else base.contestant.name,
        "rows": {row.contestant.name: _row(row, base, _own_plain(row, rows), prompts, greedy) for row in rows},
    }


def _fastest_plain(rows: list[Row], prompts: list[int]) -> Row | None:
    """The peer whose plain decoding is the fastest; ours where there is no other."""
    plain = [row for row in rows if row.contestant.variant == PLAIN]
    others = [row for row in plain if row.contestant.family != OURS]
    return max(others or plain, key=lambda row: median(_rate(row, i) for i in prompts), default=None)


def _own_plain(row: Row, rows: list[Row]) -> Row | None:
    """The same runtime's plain decoding; None of that itself."""
    kin = (r for r in rows if r is not row and r.contestant.family == row.contestant.family)
    return next((r for r in kin if r.contestant.variant == PLAIN), None)


def _row(row: Row, base: Row | None, plain: Row | None, prompts: list[int], greedy: bool) -> dict[str, object]:
    samples = [sample for i in prompts for sample in row.samples[i]]
    made = sum(len(s.answer.tokens) for s in samples)
    found: dict[str, object] = {
        "tokens_per_s": median(_rate(row, i) for i in prompts),
        "first_s": median(s.answer.first_s for s in samples),
        "tokens": made,
    }
    if base is not None:
        ratios = [_rate(row, i) / _rate(base, i) for i in prompts if _rate(base, i)]
        theirs = mean(_whole(base, i) for i in prompts)
        found["times_fastest"] = median(ratios) if ratios else None
        found["lowest_times_fastest"] = min(ratios, default=None)
        found["ratio_of_means"] = mean(_whole(row, i) for i in prompts) / theirs if theirs else None
    steps = [s.answer.steps for s in samples]
    if made and all(steps):
        found["tokens_per_step"] = made / sum(n for n in steps if n is not None)
    found |= _ceiling(samples, base, prompts)
    if greedy and plain is not None:
        found["same_text"] = sum(_texts(row, i) == _texts(plain, i) for i in prompts)
    joules = [s.joules for s in samples if s.joules is not None]
    if made and len(joules) == len(samples):
        found["joules_per_token"] = sum(joules) / made
    return found


def _ceiling(samples: list[Sample], base: Row | None, prompts: list[int]) -> dict[str, object]:
    """What the same steps would bring if they took what T(n) says and nothing else took any time."""
    known = [(len(s.answer.tokens) - s.answer.n_first, s.answer.ceiling_s) for s in samples]
    seconds = sum(ceiling or 0.0 for _, ceiling in known)
    if not seconds:
        return {}
    rate = sum(n for n, _ in known) / seconds
    theirs = 0.0 if base is None else median(_rate(base, i) for i in prompts)
    return {"ceiling_tokens_per_s": rate, **({"ceiling_times_fastest": rate / theirs} if theirs else {})}


def _rate(row: Row, prompt: int) -> float:
    return median(s.answer.rate for s in row.samples[prompt])


def _whole(row: Row, prompt: int) -> float:
    return median(s.answer.whole_rate for s in row.samples[prompt])


def _texts(row: Row, prompt: int) -> set[tuple[int, ...]]:
    return {s.answer.tokens for s in row.samples[prompt]}
