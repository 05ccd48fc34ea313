"""Whether a draft model pays for a target on this machine: measured acceptance, expected and measured speed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from ..loading import cpu_load
from ..loading.draft import remember_verdict
from ..loading.load import load
from ..loading.measuring import doubt
from ..loading.opening import resolve
from ..runtime.checks import whole
from ..runtime.interfaces import Floats, Session, Tokens, Weights
from ..runtime.model.model import Model
from ..runtime.profiling.teacher_forced import logits_along_text
from ..runtime.progress import Progress, Share
from ..runtime.speculation.draft_length import RenewalReward
from .forecast import Costs, Forecast, best_length, costs_of, lookup_speed_up
from .prompts import CHECK

MARGIN = 1.02  # a draft that promises less over going without is not called one that pays
_CONTEXT = 2048  # entries, where the model has so many; prompts and answers are short
_MOST = {"n_tokens": _CONTEXT // 2, "per_set": 4, "repeats": 1000}  # prompts of a set that there are
_CHUNK = 256  # rows of a teacher-forced step


@dataclass(frozen=True, slots=True)
class SetResult:
    """A draft on one kind of text."""

    prompts: int
    tokens: int
    agreement: float  # share of the target's tokens that the draft finds most probable, given the text before them
    overlap: float  # mean of sum min(p, q): the chance that a sampled draft is accepted, at temperature 1
    draft: Forecast  # the draft model alone,
    lookup: float  # and looking up alone: expected speed-ups
    measured: dict[str, float] | None = None  # speed over plain decoding: "lookup", "draft", "both"

    @property
    def pays(self) -> bool:
        """Whether drafting beats what is there without the draft model: plain decoding and looking up."""
        if self.measured is not None:
            return self.measured["both"] > MARGIN * max(1.0, self.measured["lookup"])
        return self.draft.speed_up > MARGIN * max(1.0, self.lookup)


@dataclass(frozen=True, slots=True)
class DraftCheck:
    """What a draft model brings a target here."""

    target: str
    draft: str
    engine: str
    draft_engine: str
    threads: int
    pairing: str
    n_shared: int
    step_ms: dict[int, float]  # of the target, by rows
    draft_ms: float  # of the draft, one row
    sets: dict[str, SetResult]
    doubt: str = ""  # why its times are not to be relied on: such a check is not remembered

    @property
    def pays(self) -> bool:
        """Whether it pays on any kind of text; where it does not, the length policy leaves it out."""
        return any(s.pays for s in self.sets.values())

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        paying = [name for name, s in self.sets.items() if s.pays]
        if not paying:
            return f"This draft does not pay here: nowhere is it faster than {self.target} without it."
        others = [name for name in self.sets if name not in paying]
        rest = f", not on {', '.join(others)}" if others else ""
        return f"This draft pays here on {', '.join(paying)}{rest}."

    def as_dict(self) -> dict[str, object]:
        """Everything, for JSON and for a manifest."""
        plain = asdict(self)
        for name, result in self.sets.items():
            plain["sets"][name]["pays"] = result.pays
        return {**plain, "pays": self.pays, "verdict": self.verdict}


def check_draft(
    target: str | os.PathLike[str],
    draft: str | os.PathLike[str],
    *,
    engine: str | None = None,
    draft_engine: str | None = None,
    threads: int | None = None,
    n_tokens: int = 64,
    per_set: int = 4,
    exact: bool = True,
    measure: bool = False,
    repeats: int = 3,
    progress: Progress | None = None,
) -> DraftCheck:
    """What a draft model brings a target on this machine, on chat, code and copying; remembered for draft="auto" unless
    the machine was too busy to tell.

    The target answers the built-in prompts; the draft is asked at every token of the answers what comes next. Since
    greedy drafts change nothing, every draft length can be worked out from that; with this machine's measured times
    that gives the expected speed. exact: as for load(); without it steps may be as wide as is fastest, and the verdict
    is not remembered. measure: also runs plain decoding, looking up, the draft and both in turns.

    Raises what load() raises, and OptionError for vocabularies that do not fit.
    """
    for name, value in (("n_tokens", n_tokens), ("per_set", per_set), ("repeats", repeats)):
        whole(name, value, 1, _MOST[name])
    report = progress or (lambda what, share: None)
    found, found_draft, share = resolve(target, report), resolve(draft, report), cpu_load.cpu_load()
    with load(
        found,
        engine,
        draft=found_draft,
        draft_engine=draft_engine,
        threads=threads,
        max_context=min(_CONTEXT, found.context_length),
        exact=exact,
        narrow=False if exact else None,  # the draft is asked everywhere
        progress=report,
    ) as model:
        assert model.draft is not None
        others = cpu_load.Others()
        costs = costs_of(model)
        sets = {}
        for name, prompts in CHECK.items():
            what = f"drafting for {name}"
            report(what, 0.0)
            tell = partial(report, what)
            sets[name] = _check_set(model, costs, prompts[:per_set], n_tokens, repeats if measure else 0, tell)
            report(what, 1.0)
        pairing, beside = model.draft.pairing, model.draft.weights.info
        rows = costs.rows.widths
        result = DraftCheck(
            target=_name(target),
            draft=_name(draft),
            engine=model.info.engine,
            draft_engine=beside.engine,
            threads=model.info.threads,
            pairing="identical" if pairing is None else pairing.kind,
            n_shared=model.tokenizer.vocab_size if pairing is None else pairing.n_shared,
            step_ms={w: 1e3 * costs.target.seconds(w) for w in rows if w in (*rows[:1], 2, 3, 4, 8, 16)},
            draft_ms=1e3 * costs.draft.seconds(1),
            sets=sets,
            doubt=doubt(costs.target.measured, max(share, others.share())),
        )
        if exact and not result.doubt:
            remember_verdict(found, found_draft, model.info, result.as_dict())
    return result


def _name(path: str | os.PathLike[str]) -> str:
    return Path(path).name or str(path)


def _check_set(
    model: Model, costs: Costs, prompts: Sequence[str], n_tokens: int, repeats: int, tell: Share
) -> SetResult:
    answers, agree, overlap = [], [], []
    steps = len(prompts) * (2 if repeats else 1)
    for i, prompt in enumerate(prompts):
        tokens, n_prompt = answer(model, prompt, n_tokens)
        answers.append((tokens, n_prompt))
        p, q = _distributions(model, tokens, n_prompt)
        agree.append(q.argmax(axis=1) == tokens[n_prompt:])
        overlap.append(np.minimum(_softmax(p), _softmax(q)).sum(axis=1))
        tell((i + 1) / steps)
    agreed = np.concatenate(agree)
    return SetResult(
        prompts=len(prompts),
        tokens=len(agreed),
        agreement=float(agreed.mean()),
        overlap=float(np.concatenate(overlap).mean()),
        draft=best_length(agree, costs),
        lookup=lookup_speed_up(answers, costs),
        measured=_measure(model, prompts, n_tokens, repeats) if repeats else None,
    )


def answer(model: Model, prompt: str, n_tokens: int) -> tuple[Tokens, int]:
    """(prompt and plain greedy answer, length of the prompt)"""
    asked = model.encode(prompt)
    with model.sibling(policy=None) as plain:
        said = plain.generate(prompt, max_new_tokens=n_tokens).token_ids
    return np.concatenate([asked, np.array(said, dtype=np.int64)]), len(asked)


def _distributions(model: Model, tokens: Tokens, n_prompt: int) -> tuple[Floats, Floats]:
    """Logits of target and draft, over the target's tokens, for each token of an answer, (n, vocab_size)."""
    assert model.draft is not None
    rows, weights = model.info.vocab_size, model.draft.weights
    p = _teacher_forced(model.target, tokens[:-1], np.arange(n_prompt - 1, len(tokens) - 1))
    translation = model.draft.translation(model.target, model.tokenizer)
    if translation is None:
        return p, _teacher_forced(weights, tokens[:-1], np.arange(n_prompt - 1, len(tokens) - 1))[:, :rows]
    own, ends = translation.context(tokens[:-1])
    logits = _teacher_forced(weights, own, ends[n_prompt - 1 :] - 1)
    return p, np.stack([translation.logits(row).copy() for row in logits])


def _teacher_forced(weights: Weights, tokens: Tokens, rows: npt.NDArray[np.int64]) -> Floats:
    """Logits after these rows of a text, (len(rows), vocab_size)."""
    session: Session = weights.session(min(len(tokens) + _CHUNK, weights.info.context_length))
    try:
        first = int(rows[0])
        return logits_along_text(session, tokens, len(tokens) - first, widths=(_CHUNK,), chunk=_CHUNK)[rows - first]
    finally:
        session.close()


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = e / e.sum(axis=1, keepdims=True)
    return shares


def _measure(model: Model, prompts: Sequence[str], n_tokens: int, repeats: int) -> dict[str, float]:
    """Speed over plain decoding, A B C D, then D C B A: a set's ratio is that of its summed median seconds."""
    plain, lookup = model.sibling(policy=None), model.sibling(policy=RenewalReward())
    alone = model.sibling(policy=RenewalReward(), draft=True, proposers=())
    names: dict[str, Model] = {"plain": plain, "lookup": lookup, "draft": alone, "both": model}
    times: dict[str, list[list[float]]] = {name: [[] for _ in prompts] for name in names}
    timed: Callable[[str, str], float] = lambda name, text: (  # noqa: E731
        names[name].generate(text, max_new_tokens=n_tokens).stats.decode_s
    )
    try:
        for name in names:
            timed(name, prompts[0])  # the first steps are slower
        for turn in range(repeats):
            for i, prompt in enumerate(prompts):
                for name in names if turn % 2 == 0 else reversed(names):
                    times[name][i].append(timed(name, prompt))
    finally:
        for other in (alone, lookup, plain):
            other.close()
    total = {name: sum(median(t) for t in seconds) for name, seconds in times.items()}
    return {name: total["plain"] / total[name] for name in ("lookup", "draft", "both")}
