"""Makes the answers of one model: rounds of the decode loop into pieces of text and a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ..cache.quality_gate import QualityGatedCache
from ..cache.sequence import CachedSequence
from ..cache.shadow import QualityReport
from ..decoding.beam_search import Beams, search
from ..decoding.loop import CANCELLED, Limits, end_of, generate
from ..errors import AbilityError, NotFiniteError, PilotfishError
from ..interfaces import FinishReason, ModelInfo, Round
from ..speculation.controller import Drafting
from ..speculation.proposer_set import Drafters
from ..speculation.proposers import SelfDraft
from ..text.prompts import Task
from ..text.text_assembler import TextAssembler
from ..text.thinking import Thoughts, begins_inside, special_marks
from ..text.tokenizer import Tokenizer
from .listening import Lines, Windows, told
from .request import Request
from .result import Result, Stats, judged
from .rules import Frame, Rules
from .stream import Making


class Answering:
    """One answer after another, over the caches of one model; whoever asks for pieces has the turn.

    drafts: False is plain decoding. narrow: as for loop.generate().
    explain: words the errors for weights without an answer, and for an ability that is missing.
    """

    def __init__(
        self,
        sequence: CachedSequence,
        tokenizer: Tokenizer,
        drafters: Drafters,
        drafting: Drafting,
        rules: Rules,
        *,
        info: ModelInfo,
        exact: bool,
        narrow: bool,
        drafts: bool,
        explain: Callable[[PilotfishError], PilotfishError],
    ) -> None:
        self.sequence = sequence
        self._tokenizer = tokenizer
        self._drafters, self._drafting, self._rules = drafters, drafting, rules
        self.lookups = drafters.lookups  # who drafts besides a model
        self._info, self._exact, self._drafts, self._narrow = info, exact, drafts, narrow
        self._explain = explain

    def pieces(self, making: Making, asked: Request) -> Iterator[str]:
        """The text as it is decided. Raises ContextFullError and OptionError before anything changes."""
        limits = asked.limits
        ends = replace(limits, cancelled=lambda: making.ended or limits.cancelled())
        try:
            yield from self._pieces(making, replace(asked, limits=ends))
        except NotFiniteError as error:
            self.sequence.truncate(0)  # what was computed beside such values, in one step, may be none either
            self._drafters.close_copy()
            raise self._explain(error) from error
        except AbilityError as error:
            if not error.missing:
                raise
            raise self._explain(error) from error

    def _pieces(self, making: Making, asked: Request) -> Iterator[str]:
        if not making.has_turn:
            making.rounds.append(CANCELLED)
            making.result = Result("", (), "cancelled", (CANCELLED,), self._stats(asked.task, 0, None, making.rounds))
            return
        began = time.perf_counter()
        task = asked.task
        reused = self._reused(task)
        windows = self._windows(task)
        text: TextAssembler | Lines
        if windows is not None and task.first_time is not None:
            text = Lines(windows)
        else:
            behind = task.context if task.continues else ()
            shown = special_marks(task.thoughts, self._tokenizer) if task.thoughts else frozenset()
            text = TextAssembler(self._tokenizer, asked.limits.stop_ids, asked.stop, behind=behind, shown=shown)
        thoughts = making.thoughts = self._thoughts(task)
        reason: FinishReason = "length"
        ttft_s: float | None = None
        for done in self._decided(asked, windows):
            if ttft_s is None and done.tokens:
                ttft_s = time.perf_counter() - began
            piece, done = text.push(done)
            making.rounds.append(done)
            reason = done.finish_reason or reason
            if piece:
                yield piece if thoughts is None else thoughts.push(piece)
            if done.finish_reason is not None:
                break
        tail = text.finish()
        if thoughts is not None:
            tail = thoughts.push(tail) + thoughts.finish()
        making.result = Result(
            text.text if thoughts is None else thoughts.said,
            text.token_ids,
            reason,
            tuple(making.rounds),
            self._stats(task, reused, ttft_s, making.rounds),
            spoken=() if windows is None else tuple(windows.spoken),
            language=None if windows is None else self._rules.language_of(windows.context),
            thinking=None if thoughts is None else thoughts.thought,
        )
        if tail:
            yield tail

    def trial(self) -> QualityReport | None:
        """What quality= has found out so far."""
        mode = self.sequence.mode
        return mode.report() if isinstance(mode, QualityGatedCache) else None

    @property
    def drafts_with_model(self) -> bool:
        """Whether a model drafts, be it the target itself."""
        return self._drafts and self._drafters.with_model

    def close(self) -> None:
        """Free the caches."""
        self.sequence.close()
        self._drafters.close_copy()
        self._drafters.close()

    def _decided(self, asked: Request, windows: Windows | None) -> Iterator[Round]:
        """The rounds of the answer, of a recording window after window."""
        seeds = np.random.SeedSequence(asked.seed).spawn(2)  # drafts draw from a stream of their own

        def answer(part: Task) -> Iterator[Round]:
            return self._rounds(asked, part, seeds) if asked.beams is None else self._search(asked, part, asked.beams)

        if windows is None:
            return answer(asked.task)
        return told(windows, asked.task, self.sequence, self._tokenizer.eos_ids, answer)

    def _rounds(self, asked: Request, task: Task, seeds: list[np.random.SeedSequence]) -> Iterator[Round]:
        sampling = self._rules.applied(asked.sampling, self._frame(task, asked.limits))
        return generate(
            self.sequence,
            task.context,
            source=task.source,
            sampling=sampling,
            drafting=self._drafting,
            proposers=self._drafters.of(task, sampling, seeds[1]) if self._drafts else (),
            limits=asked.limits,
            rng=np.random.default_rng(seeds[0]),
            narrow=self._narrow,
        )

    def _search(self, asked: Request, task: Task, beams: Beams) -> Iterator[Round]:
        return search(
            self.sequence,
            task.context,
            source=task.source,
            beams=beams,
            limits=asked.limits,
            processors=self._rules.processors(self._frame(task, asked.limits)),
            n_forced=task.n_forced,
        )

    def _frame(self, task: Task, limits: Limits) -> Frame:
        """What the model's rules have to know of an answer. Raises ContextFullError for one that does not fit."""
        return Frame(
            n_prompt=len(task.context),
            n_forced=task.n_forced,
            end=end_of(self.sequence, task.context, limits, task.source is not None),
            ends=self._tokenizer.ordered_eos_ids,
            read=task.context if task.source is None else task.words,
            first_time=task.first_time,
        )

    def _thoughts(self, task: Task) -> Thoughts | None:
        """What parts thoughts from the answer; None where the answer can have none."""
        marks = task.thoughts
        return None if marks is None else Thoughts(marks, inside=begins_inside(marks, self._tokenizer, task.context))

    def _windows(self, task: Task) -> Windows | None:
        """The windows of a recording; None for texts."""
        encoder = self._info.encoder
        if encoder is None or not task.hears:
            return None
        heard = np.asarray(task.source, dtype=np.float32)
        return Windows(heard, encoder.source_limit or heard.shape[1], self._tokenizer, task.first_time)

    def _reused(self, task: Task) -> int:
        """How much of the prompt need not be processed again."""
        if task.source is None:
            return self.sequence.reusable(task.context[:-1])
        return task.n_read if self.sequence.has_read(task.source) else 0

    def _stats(self, task: Task, reused: int, ttft_s: float | None, rounds: list[Round]) -> Stats:
        return Stats.of(
            rounds,
            n_prompt=task.n_read,
            n_reused=reused,
            ttft_s=ttft_s,
            judged=judged(rounds, SelfDraft.name),
            kv_bytes=self.sequence.nbytes + self._drafters.nbytes,
            trial=self.trial(),
            kv_entries=self.sequence.n_entries,
            info=self._info,
            exact=self._exact,
        )
