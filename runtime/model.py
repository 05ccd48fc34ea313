"""Model: weights, tokenizer and policies behind generate(), stream() and chat()."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from .beams import Beams, check_beams, search
from .cache_policies.policy import CachePolicy
from .chat import Chat
from .chat_template import ChatTemplate, Message
from .choice import Choice
from .cost import Calibration
from .draft_length import RenewalReward
from .draft_weights import DraftWeights, Shared
from .drafters import Drafters
from .drafting import Drafting
from .engine import Limits, UpTo, end_of, generate
from .errors import ChatTemplateError, OptionError
from .interfaces import DraftLengthPolicy, FinishReason, ModelInfo, Proposer, Round, Tokens, Weights
from .listening import Lines, Windows, told
from .prompts import Prompt, Task, encode_prompt, task_of
from .proposers import DraftModel, SelfDraft
from .result import Result, Stats, judged
from .rules import Frame, Rules, Wish
from .sampling import Sampling
from .sequence import SavedSequence
from .stopping import TextAssembler
from .stream import Stream
from .tokenizer import Tokenizer
from .trial import TrialSequence, open_sequence
from .twin import TrialReport

__all__ = ["DraftWeights", "Model", "Prompt"]

ANSWER = UpTo(256)  # tokens of an answer whose length nobody asked for


class Model:
    """A loaded model. One generation at a time; a second thread waits for its turn.

    target: the weights to answer with; draft: None, or a smaller model.
    policy: how many tokens to draft; None is plain decoding.
    proposers: who drafts besides the draft model; None: whoever costs next to nothing for this kind of model.
    self_draft: drafts with the target's own weights over a copy of its cache that this policy compresses.
    cache: compresses the target's cache whenever it is full, and its size is the policy's then; None keeps everything.
    quality: the agreement with the full cache at which that of `cache` takes its place; without `cache`, what the
        size of self_draft's cache holds.
    exact: stay in one row class, so that plain and speculative text are the same bits by construction.
    rules: the model's own: tokens that no answer holds, and its settings for generating.
    """

    def __init__(
        self,
        target: Weights,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        calibration: Calibration,
        *,
        draft: DraftWeights | None = None,
        policy: DraftLengthPolicy | None = None,
        proposers: Sequence[Proposer] | None = None,
        exact: bool = True,
        self_draft: CachePolicy | None = None,
        cache: CachePolicy | None = None,
        quality: float | None = None,
        max_context: int | None = None,
        choice: Choice | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.choice = choice  # why this engine: what was tried, where anything was
        self.tokenizer = tokenizer
        self.template = template
        self.calibration = calibration
        self.exact = exact
        self.policy = policy
        self.cache = cache
        self.quality = quality
        self._target = target
        self._draft = draft
        rows = calibration.rows.rule() if exact else calibration.rows.free()
        self._rules = rules or Rules()
        self._max_entries = max_context
        drafts = policy is not None
        self._sequence = open_sequence(
            target,
            rows,
            cache=cache,
            self_draft=self_draft if drafts else None,
            quality=quality,
            max_context=max_context,
        )
        self._self_draft = self_draft
        self._drafters = Drafters(
            self._sequence, target, tokenizer, proposers, draft if drafts else None, self_draft if drafts else None
        )
        token_s = {SelfDraft.name: calibration.curve.seconds(1)}
        if draft is not None:
            token_s[DraftModel.name] = draft.token_s
        self._drafting = Drafting(policy or RenewalReward(), calibration.curve, rows, token_s)
        self._turn = threading.Lock()
        self._closed = False

    def sibling(
        self,
        *,
        policy: DraftLengthPolicy | None,
        exact: bool | None = None,
        draft: bool = False,
        proposers: Sequence[Proposer] | None = None,
    ) -> Model:
        """Another model over the same weights, with caches of its own: to compare policies in one process.

        draft: whether it uses the draft model, or drafts for itself, too. Close it before this one.
        """
        beside = self._draft if draft else None
        drafts_itself = draft and policy is not None
        return Model(
            Shared(self._target),
            self.tokenizer,
            self.template,
            self.calibration,
            draft=None if beside is None else replace(beside, weights=Shared(beside.weights)),
            policy=policy,
            proposers=proposers,
            exact=self.exact if exact is None else exact,
            self_draft=self._self_draft if draft else None,
            cache=self.cache,
            quality=self.quality if self.cache is not None or drafts_itself else None,
            max_context=self._max_entries,
            rules=self._rules,
        )

    @property
    def info(self) -> ModelInfo:
        """Engine, device and shape of the target."""
        return self._target.info

    @property
    def target(self) -> Weights:
        """The weights that answer."""
        return self._target

    @property
    def draft(self) -> DraftWeights | None:
        """The model that drafts for them; None: there is none."""
        return self._draft

    @property
    def max_context(self) -> int:
        """Tokens that prompt and output may have together."""
        return self._sequence.longest

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = ANSWER,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str | int] = (),
        sampling: Sampling | None = None,
        raw: bool = False,
        cancel: threading.Event | None = None,
        beams: int | Beams | None = None,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
    ) -> Result:
        """The whole answer.

        prompt: a list of messages, or a text. A text is one user message where the model has a chat template;
            raw=True feeds it as it is. A model that listens takes what read_wav() gives, or features of its own.
        max_new_tokens: the default is 256, or what an encoder-decoder's own settings say, or fewer where there is room
            for fewer; a number that is given has to fit; None is until the context is full.
        temperature: 0 (the default) is greedy; `sampling` holds the other settings and replaces it.
        stop: strings or token ids that end the answer; a stop string is not part of the text.
        cancel: an event that ends the generation between two steps, prompt processing included.
        beams: search for the most probable answer with so many beginnings at a time (docs/encoder-decoder.md); None
            decides token by token. It neither samples nor drafts. With a number alone, length penalty and early
            stopping are the model's own.
        language: of the answer ("fr_XX"), or of a recording ("fr"), by the model's own name, where it has a token for
            that; without one the language of a recording is heard.
        task: what a model of many languages that listens does: "transcribe" or "translate" (into English).
        timestamps: of a recording tell what was said when, a line for each part (Result.spoken).
        Raises ContextFullError, OptionError and ChatTemplateError before anything changes.
        """
        stream = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop,
            sampling=sampling,
            raw=raw,
            cancel=cancel,
            beams=beams,
            language=language,
            task=task,
            timestamps=timestamps,
        )
        for _ in stream:
            pass
        assert stream.result is not None
        return stream.result

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = ANSWER,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str | int] = (),
        sampling: Sampling | None = None,
        raw: bool = False,
        cancel: threading.Event | None = None,
        progress: Callable[[int, int], None] | None = None,
        beams: int | Beams | None = None,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
    ) -> Stream:
        """The answer piece by piece; iterate, then read `.result`. Options as in generate().

        progress: called with (tokens done, tokens in all) while the prompt is processed.
        """
        settings = _sampling(temperature, sampling)
        wanted = self._rules.beams(beams) if isinstance(beams, int) else beams
        job = self._task(prompt, raw)
        job = self._rules.asked(job, Wish(language, task, timestamps), job.hears)
        if max_new_tokens is ANSWER and job.source is not None:
            max_new_tokens = self._rules.longest(len(job.context), job.n_forced) or ANSWER
        strings = tuple(s for s in stop if isinstance(s, str))
        if "" in strings:
            raise OptionError("a stop string is empty, so nothing could ever be generated; leave it out.")
        if strings and timestamps:
            raise OptionError("with timestamps the text is told line by line, and cannot end at a string; drop stop.")
        if wanted is not None:
            drafted = self.policy is not None and self._drafters.with_model
            check_beams(settings, strings, draft=drafted, cache=self.cache is not None)
        limits = Limits(
            max_new_tokens=max_new_tokens,
            stop_ids=self.tokenizer.eos_ids | {s for s in stop if not isinstance(s, str)},
            cancelled=cancel.is_set if cancel is not None else lambda: False,
            progress=progress,
        )
        return Stream(lambda stream: self._run(stream, job, settings, limits, strings, seed, wanted), self._trial)

    def chat(self, system: str | None = None, *, seed: int | None = None) -> Chat:
        """A conversation that remembers its messages; the cache of earlier turns is reused."""
        self._check_template()
        return Chat(self, system, seed)

    def resume(self, path: str | os.PathLike[str], *, reread: bool = False) -> Chat:
        """The conversation that Chat.save() wrote, with its cache: only what is new is read.

        reread: take its messages alone, and read their text anew; for another model, engine or settings.
        Raises OptionError for a file that is damaged, or of another model, engine or settings, and ContextFullError
        where its cache does not fit, each before anything changes.
        """
        self._check_template()
        return Chat.open(self, path, reread=reread)

    def save_cache(self, context: Tokens) -> SavedSequence:
        """The cache of this context; what it covers of anything else is forgotten. Raises AbilityError."""
        with self._turn:
            self._sequence.truncate(self._sequence.reusable(context))
            return self._sequence.save()

    def restore_cache(self, saved: SavedSequence) -> None:
        """Hold what save_cache() gave. Raises OptionError and ContextFullError before anything changes."""
        with self._turn:
            self._sequence.restore(saved)

    def encode(self, prompt: str | Sequence[Message], *, raw: bool = False) -> Tokens:
        """Token ids of a prompt, chat template applied; of an encoder-decoder model those of the source."""
        return encode_prompt(prompt, raw, self.tokenizer, self.template, source=self.info.encoder is not None)

    def _task(self, prompt: Prompt, raw: bool) -> Task:
        if self._closed:
            raise OptionError("this model is closed; load it again.")
        return task_of(prompt, raw, self.tokenizer, self.template, self.info.encoder)

    def _check_template(self) -> None:
        if self.template is None:
            raise ChatTemplateError("this model has no chat template; use generate(text, raw=True).")

    def close(self) -> None:
        """Free caches and weights. A second close does nothing."""
        if self._closed:
            return
        self._closed = True
        self._sequence.close()
        self._drafters.close_copy()
        self._target.close()
        self._drafters.close()
        if self._draft is not None:
            self._draft.weights.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(
        self,
        stream: Stream,
        task: Task,
        sampling: Sampling,
        limits: Limits,
        stop: tuple[str, ...],
        seed: int | None,
        beams: Beams | None,
    ) -> Iterator[str]:
        with self._turn:
            began = time.perf_counter()
            seeds = np.random.SeedSequence(seed).spawn(2)  # drafts draw from a stream of their own
            reused = self._reused(task)
            windows = self._windows(task)
            text: TextAssembler | Lines = TextAssembler(self.tokenizer, limits.stop_ids, stop)
            if windows is not None and task.first_time is not None:
                text = Lines(windows)
            reason: FinishReason = "length"
            ttft_s: float | None = None

            def answer(part: Task) -> Iterator[Round]:
                if beams is not None:
                    return self._search(part, limits, beams)
                return self._rounds(part, sampling, limits, seeds)

            ends = self.tokenizer.eos_ids
            rounds = answer(task) if windows is None else told(windows, task, self._sequence, ends, answer)
            for done in rounds:
                if ttft_s is None and done.tokens:
                    ttft_s = time.perf_counter() - began
                piece, done = text.push(done)
                stream.rounds.append(done)
                reason = done.finish_reason or reason
                if piece:
                    yield piece
                if done.finish_reason is not None:
                    break
            tail = text.finish()
            stream.result = Result(
                text.text,
                text.token_ids,
                reason,
                tuple(stream.rounds),
                self._stats(task, reused, ttft_s, stream),
                spoken=() if windows is None else tuple(windows.spoken),
                language=None if windows is None else self._rules.language_of(windows.context),
            )
            if tail:
                yield tail

    def _rounds(
        self, task: Task, sampling: Sampling, limits: Limits, seeds: list[np.random.SeedSequence]
    ) -> Iterator[Round]:
        sampling = self._rules.applied(sampling, self._frame(task, limits))
        return generate(
            self._sequence,
            task.context,
            source=task.source,
            sampling=sampling,
            drafting=self._drafting,
            proposers=() if self.policy is None else self._drafters.of(task, sampling, seeds[1]),
            limits=limits,
            rng=np.random.default_rng(seeds[0]),
        )

    def _search(self, task: Task, limits: Limits, beams: Beams) -> Iterator[Round]:
        return search(
            self._sequence,
            task.context,
            source=task.source,
            beams=beams,
            limits=limits,
            processors=self._rules.processors(self._frame(task, limits)),
            n_forced=task.n_forced,
        )

    def _frame(self, task: Task, limits: Limits) -> Frame:
        """What the model's rules have to know of an answer. Raises ContextFullError for one that does not fit."""
        return Frame(
            n_prompt=len(task.context),
            n_forced=task.n_forced,
            end=end_of(self._sequence, task.context, limits, task.source is not None),
            ends=self.tokenizer.ordered_eos_ids,
            read=task.context if task.source is None else task.words,
            first_time=task.first_time,
        )

    def _windows(self, task: Task) -> Windows | None:
        """The windows of a recording; None for texts."""
        encoder = self.info.encoder
        if encoder is None or not task.hears:
            return None
        heard = np.asarray(task.source, dtype=np.float32)
        return Windows(heard, encoder.source_limit or heard.shape[1], self.tokenizer, task.first_time)

    def _reused(self, task: Task) -> int:
        """How much of the prompt need not be processed again."""
        if task.source is None:
            return self._sequence.reusable(task.context[:-1])
        return task.n_read if self._sequence.has_read(task.source) else 0

    def _trial(self) -> TrialReport | None:
        return self._sequence.report() if isinstance(self._sequence, TrialSequence) else None

    def _stats(self, task: Task, reused: int, ttft_s: float | None, stream: Stream) -> Stats:
        return Stats.of(
            stream.rounds,
            n_prompt=task.n_read,
            n_reused=reused,
            ttft_s=ttft_s,
            judged=judged(stream.rounds, SelfDraft.name),
            kv_bytes=self._sequence.nbytes + self._drafters.nbytes,
            trial=self._trial(),
            kv_entries=self._sequence.n_entries,
            info=self.info,
            exact=self.exact,
        )


def _sampling(temperature: float | None, sampling: Sampling | None) -> Sampling:
    if sampling is None:
        return Sampling(temperature=temperature or 0.0)
    if temperature is not None:
        raise OptionError("temperature and sampling are both given; put the temperature into Sampling.")
    return sampling
