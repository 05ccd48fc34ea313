"""How far an export is from its source: numbers from two arrays of logits, or from one and the source's stored answers.

p is the source's distribution, q the export's, both over what follows each token of a text. Everything is numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...runtime.errors import ModelFileError
from ...runtime.interfaces import Floats, Tokens
from ...runtime.sampling.log_softmax import log_softmax

_TOP = 16  # tokens a row of which are stored
_NEAR_TIE = 0.1  # nats between two tokens that rounding may put either way
_LEAST_ROWS = 2  # of a text: a token, and the one that it goes on with
_BLOCK = 16  # rows at once: 16 rows of 262,144 tokens in f64 are 34 MB


@dataclass(frozen=True, slots=True)
class TextAnswers:
    """What the source says after each of the last m tokens of a text."""

    tokens: Tokens  # (n,)
    top_ids: npt.NDArray[np.int32]  # (m, k) the most probable first
    top_logprobs: Floats  # (m, k)
    next_logprobs: Floats  # (m - 1,) of the token that the text goes on with


@dataclass(frozen=True, slots=True)
class GreedyRun:
    """A prompt, what the source goes on with, and the logit of each of these tokens minus the second best."""

    prompt: Tokens  # (n,)
    ids: Tokens  # (m,)
    gaps: Floats  # (m,)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the source says to all texts and prompts: enough to judge an export without it."""

    texts: Mapping[str, TextAnswers]
    runs: tuple[GreedyRun, ...]
    spread: float  # root mean square of the source's logits around the mean of their row

    def within(self, limit: int) -> Answers:
        """Those to texts and prompts of so many tokens at most; longer ones are cut, or left out with nothing left."""
        texts, runs = {}, []
        for name, text in self.texts.items():
            cut = max(len(text.tokens) - limit, 0)
            left = len(text.top_ids) - cut
            if left >= _LEAST_ROWS:
                texts[name] = TextAnswers(
                    text.tokens[: len(text.tokens) - cut],
                    text.top_ids[:left],
                    text.top_logprobs[:left],
                    text.next_logprobs[: left - 1],
                )
        for run in self.runs:
            room = limit - len(run.prompt)
            if room > 0:
                runs.append(GreedyRun(run.prompt, run.ids[:room], run.gaps[:room]))
        return Answers(texts, tuple(runs), self.spread)

    def save(self, path: Path) -> None:
        """Write them, about 0.1 kB a token."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"spread": np.array(self.spread)}
        for name, text in self.texts.items():
            arrays |= {f"text/{name}/{field}": value for field, value in asdict(text).items()}
        for i, run in enumerate(self.runs):
            arrays |= {f"run/{i}/{field}": value for field, value in asdict(run).items()}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read what save() wrote. Raises ModelFileError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            names = dict.fromkeys(n.split("/")[1] for n in arrays if n.startswith("text/"))
            count = len({n.split("/")[1] for n in arrays if n.startswith("run/")})
            fields = TextAnswers.__dataclass_fields__, GreedyRun.__dataclass_fields__
            return cls(
                {name: TextAnswers(**{f: arrays[f"text/{name}/{f}"] for f in fields[0]}) for name in names},
                tuple(GreedyRun(**{f: arrays[f"run/{i}/{f}"] for f in fields[1]}) for i in range(count)),
                float(arrays["spread"]),
            )
        except Exception as error:  # numpy, zipfile and zlib each have errors of their own for a damaged file
            raise ModelFileError(f"{path} cannot be read: {error}. Export the model again.") from error


def answers_to(texts: Mapping[str, Tokens], logits: Mapping[str, Floats], runs: tuple[GreedyRun, ...]) -> Answers:
    """The source's answers from its logits, (m, vocab_size) for the last m tokens of each text."""
    found, squares, n = {}, 0.0, 0
    for name, tokens in texts.items():
        rows = logits[name]
        logprobs = np.concatenate([log_softmax(part) for part in _blocks(rows)]).astype(np.float32)
        top = np.argsort(-logprobs, axis=-1, kind="stable")[:, :_TOP].astype(np.int32)
        following = np.take_along_axis(logprobs[:-1], tokens[len(tokens) - len(rows) + 1 :, None], axis=-1)[:, 0]
        found[name] = TextAnswers(tokens, top, np.take_along_axis(logprobs, top, axis=-1), following)
        squares += float(np.square(rows - rows.mean(axis=-1, keepdims=True), dtype=np.float64).sum())
        n += rows.size
    return Answers(found, runs, math.sqrt(squares / n))


@dataclass(frozen=True, slots=True)
class Parity:
    """An export against its source, over all rows of all texts and all prompts.

    The differences of logits need the source; without it they are None, and kl is that of the source's best tokens and
    of everything else taken together, which is never more than the whole.
    """

    n_tokens: int
    top1: float  # share of rows where both find the same token most probable
    agreement: float  # the same, and rows where the source finds the export's token all but as probable
    kl: float  # nats a token, KL(p || q)
    perplexity_source: float  # of the texts
    perplexity: float
    regret: float  # log p(its best) - log p(export's best), mean over rows, in nats
    greedy_equal: int  # prompts answered with the source's own tokens
    greedy_prompts: int
    greedy_first: int | None  # earliest place of any answer where the best token differs
    greedy_gap: float  # largest gap of the source, in logits, at the first difference of an answer; 0.0 where none is
    max_difference: float | None = None  # of logits
    mean_difference: float | None = None
    relative_difference: float | None = None  # root mean square of the difference over that of the source, centred

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of the export over that of the source."""
        return self.perplexity / self.perplexity_source

    def facts(self) -> dict[str, float]:
        """Numbers for the manifest; what was not measured is left out."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


class Tally:
    """Adds up texts and answers of one export, and says how far it is from the source."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._sums: dict[str, float] = {}
        self._max = 0.0
        self._firsts: list[tuple[int, float] | None] = []
        self._whole = True

    def add_text(self, name: str, export: Floats, source: Floats | None = None) -> None:
        """One text: logits of the last m tokens, (m, vocab_size). Not finite numbers are counted as wrong answers."""
        text = self._answers.texts[name]
        self._whole &= source is not None
        following = text.tokens[len(text.tokens) - len(export) + 1 :]
        for at in range(0, len(export), _BLOCK):
            rows = slice(at, min(at + _BLOCK, len(export)))
            q = log_softmax(np.nan_to_num(export[rows], nan=0.0, posinf=0.0, neginf=-1e9))
            self._add_rows(text, rows, q, following)
            if source is not None:
                self._add_differences(source[rows], export[rows], q)

    def add_answer(self, number: int, best: Tokens) -> None:
        """One prompt: the export's best token at each place of the source's own answer."""
        run = self._answers.runs[number]
        at = np.flatnonzero(best != run.ids)
        self._firsts.append((int(at[0]), float(run.gaps[at[0]])) if len(at) else None)

    def result(self) -> Parity:
        """The numbers over everything added."""
        n, n_next, firsts = self._sums["rows"], self._sums["next"], [f for f in self._firsts if f is not None]
        parity = Parity(
            n_tokens=int(n),
            top1=self._sums["same"] / n,
            agreement=self._sums["near"] / n,
            kl=self._sums["kl"] / n,
            perplexity_source=math.exp(-self._sums["next_p"] / n_next),
            perplexity=math.exp(min(-self._sums["next_q"] / n_next, 700.0)),
            regret=self._sums["regret"] / n,
            greedy_equal=len(self._firsts) - len(firsts),
            greedy_prompts=len(self._firsts),
            greedy_first=min((place for place, _ in firsts), default=None),
            greedy_gap=max((gap for _, gap in firsts), default=0.0),
        )
        if not self._whole:
            return parity
        size = self._sums["entries"]
        whole = {
            "max_difference": self._max,
            "mean_difference": self._sums["difference"] / size,
            "relative_difference": math.sqrt(self._sums["squares"] / self._sums["spread"]),
        }
        return Parity(**{**asdict(parity), **whole, "kl": self._sums["whole_kl"] / n})

    def _add(self, **sums: float) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _add_rows(self, text: TextAnswers, rows: slice, q: npt.NDArray[np.float64], following: Tokens) -> None:
        ids, p = text.top_ids[rows], text.top_logprobs[rows].astype(np.float64)
        theirs = q.argmax(axis=-1)
        where = ids == theirs[:, None]
        found = np.where(
            where.any(axis=-1), np.take_along_axis(p, where.argmax(axis=-1)[:, None], axis=-1)[:, 0], p[:, -1]
        )
        q_top = np.take_along_axis(q, ids, axis=-1)
        rest_p, rest_q = (np.log(np.maximum(1.0 - np.exp(x).sum(axis=-1), 1e-9)) for x in (p, q_top))
        kl = (np.exp(p) * (p - q_top)).sum(axis=-1) + np.exp(rest_p) * (rest_p - rest_q)
        known = following[rows.start : rows.stop]
        self._add(
            rows=len(q),
            same=int((ids[:, 0] == theirs).sum()),
            near=int((p[:, 0] - found < _NEAR_TIE).sum()),
            kl=float(kl.sum()),
            regret=float((p[:, 0] - found).sum()),
            next=len(known),
            next_p=float(text.next_logprobs[rows.start : rows.start + len(known)].sum(dtype=np.float64)),
            next_q=float(q[np.arange(len(known)), known].sum()),
        )

    def _add_differences(self, source: Floats, export: Floats, q: npt.NDArray[np.float64]) -> None:
        p = log_softmax(source)
        difference = np.nan_to_num(export, nan=1e9, posinf=1e9, neginf=-1e9).astype(np.float64) - source
        self._max = max(self._max, float(np.abs(difference).max()))
        self._add(
            whole_kl=float((np.exp(p) * (p - q)).sum()),
            entries=difference.size,
            difference=float(np.abs(difference).sum()),
            squares=float(np.square(difference - difference.mean(axis=-1, keepdims=True)).sum()),
            spread=float(np.square(source - source.mean(axis=-1, keepdims=True), dtype=np.float64).sum()),
        )


def _blocks(rows: Floats) -> list[Floats]:
    return [rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK)]
