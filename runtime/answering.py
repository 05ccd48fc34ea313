"""Makes the answers of one model: rounds of the decode loop into pieces of text and a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .beams import Beams, search
from .drafters import Drafters
from .drafting import Drafting
from .engine import CANCELLED, Limits, generate
from .errors import NotFiniteError, PilotfishError
from .interfaces import FinishReason, ModelInfo, Round
from .prompts import Task
from .proposers import SelfDraft
from .result import Result, Stats, judged
from .sampling import Sampling
from .sequence import CachedSequence
from .stopping import TextAssembler
from .stream import Making
from .suppression import Suppression
from .tokenizer import Tokenizer
from .trial import TrialSequence
from .twin import TrialReport


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, checked."""

    task: Task
    sampling: Sampling
    limits: Limits
    stop: tuple[str, ...]
    seed: int | None
    beams: Beams | None


class Answering:
    """One answer after another, over the caches of one model; whoever asks for pieces has the turn.

    drafts: False is plain decoding. explain: words the error for weights without an answer.
    """

    def __init__(
        self,
        sequence: CachedSequence,
        tokenizer: Tokenizer,
        drafters: Drafters,
        drafting: Drafting,
        suppression: Suppression,
        *,
        info: ModelInfo,
        exact: bool,
        drafts: bool,
        explain: Callable[[NotFiniteError], PilotfishError],
    ) -> None:
        self._sequence, self._tokenizer = sequence, tokenizer
        self._drafters, self._drafting, self._suppression = drafters, drafting, suppression
        self._info, self._exact, self._drafts = info, exact, drafts
        self._explain = explain

    def pieces(self, making: Making, asked: Request) -> Iterator[str]:
        """The text as it is decided. Raises ContextFullError and OptionError before anything changes."""
        try:
            yield from self._pieces(making, asked)
        except NotFiniteError as error:
            self._sequence.truncate(0)  # what was computed beside such values, in one step, may be none either
            self._drafters.close_copy()
            raise self._explain(error) from error

    def _pieces(self, making: Making, asked: Request) -> Iterator[str]:
        if not making.has_turn:
            making.rounds.append(CANCELLED)
            making.result = Result("", (), "cancelled", (CANCELLED,), self._stats(asked.task, 0, None, making.rounds))
            return
        began = time.perf_counter()
        reused = self._reused(asked.task)
        behind = asked.task.context if asked.task.continues else ()
        text = TextAssembler(self._tokenizer, asked.limits.stop_ids, asked.stop, behind=behind)
        reason: FinishReason = "length"
        ttft_s: float | None = None
        for done in self._rounds(asked) if asked.beams is None else self._search(asked, asked.beams):
            if ttft_s is None and done.tokens:
                ttft_s = time.perf_counter() - began
            piece, done = text.push(done)
            making.rounds.append(done)
            reason = done.finish_reason or reason
            if piece:
                yield piece
            if done.finish_reason is not None:
                break
        tail = text.finish()
        stats = self._stats(asked.task, reused, ttft_s, making.rounds)
        making.result = Result(text.text, text.token_ids, reason, tuple(making.rounds), stats)
        if tail:
            yield tail

    def trial(self) -> TrialReport | None:
        """What quality= has found out so far."""
        return self._sequence.report() if isinstance(self._sequence, TrialSequence) else None

    def _rounds(self, asked: Request) -> Iterator[Round]:
        context = asked.task.context
        sampling = self._suppression.applied(asked.sampling, len(context))
        seeds = np.random.SeedSequence(asked.seed).spawn(2)  # drafts draw from a stream of their own
        return generate(
            self._sequence,
            context,
            source=asked.task.source,
            sampling=sampling,
            drafting=self._drafting,
            proposers=self._drafters.of(asked.task, sampling, seeds[1]) if self._drafts else (),
            limits=asked.limits,
            rng=np.random.default_rng(seeds[0]),
        )

    def _search(self, asked: Request, beams: Beams) -> Iterator[Round]:
        task = asked.task
        processor = self._suppression.processor(len(task.context))
        limits = asked.limits
        return search(self._sequence, task.context, source=task.source, beams=beams, limits=limits, processor=processor)

    def _reused(self, task: Task) -> int:
        """How much of the prompt need not be processed again."""
        if task.source is None:
            return self._sequence.reusable(task.context[:-1])
        return task.n_read if self._sequence.has_read(task.source) else 0

    def _stats(self, task: Task, reused: int, ttft_s: float | None, rounds: list[Round]) -> Stats:
        return Stats.of(
            rounds,
            n_prompt=task.n_read,
            n_reused=reused,
            ttft_s=ttft_s,
            judged=judged(rounds, SelfDraft.name),
            kv_bytes=self._sequence.nbytes + self._drafters.nbytes,
            trial=self.trial(),
            kv_entries=self._sequence.n_entries,
            info=self._info,
            exact=self._exact,
        )
