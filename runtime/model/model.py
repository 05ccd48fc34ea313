"""Model: weights, tokenizer and policies behind generate(), stream() and chat()."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..cache.policies.policy import CachePolicy
from ..cache.saved import SavedSequence
from ..decoding.beam_search import Beams
from ..errors import ChatTemplateError, PilotfishError
from ..interfaces import DraftLengthPolicy, ModelInfo, Proposer, Tokens, Weights
from ..profiling.calibrate import Calibration
from ..profiling.engine_trial import Choice
from ..progress import Counted
from ..sampling.sampling import Sampling
from ..speculation.draft_weights import DraftWeights, Shared
from ..text.chat_template import ChatTemplate, Message
from ..text.prompts import Prompt, encode_prompt
from ..text.text_assembler import Stop
from ..text.tokenizer import Tokenizer
from .chat import Chat
from .closing import Closing
from .opening import open_answering
from .request import ANSWER, Requests, check_request, one_sampling
from .result import Result
from .rules import AnswerOptions, Rules
from .stream import Making, Stream
from .turn import Turns

__all__ = ["DraftWeights", "Model", "Prompt"]


class Model:
    """A loaded model. One generation at a time: a second thread waits for its turn, and a second request of the thread
    that reads a stream ends that stream (see Stream). Models still open when the process ends are closed then.

    target: the weights to answer with; draft: None, or a smaller model.
    policy: how many tokens to draft; None is plain decoding.
    proposers: who drafts besides the draft model; None: whoever costs next to nothing for this kind of model.
    self_draft: drafts with the target's own weights over a copy of its cache that this policy compresses.
    cache: compresses the target's cache whenever it is full, and its size is the policy's then; None keeps everything.
    quality: the agreement with the full cache at which that of `cache` takes its place; without `cache`, what the
        size of self_draft's cache holds.
    exact: the row class of a step follows from the text alone, so that drafts change no bit, by construction.
    narrow: it is that of one row where the text repeats nothing; else that of wider steps throughout.
    rules: the model's own: tokens that no answer holds, and its settings for generating.
    explain: words the errors for weights whose logits are no numbers, and for abilities that their engine lacks.
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
        narrow: bool = False,
        self_draft: CachePolicy | None = None,
        cache: CachePolicy | None = None,
        quality: float | None = None,
        max_context: int | None = None,
        choice: Choice | None = None,
        rules: Rules | None = None,
        explain: Callable[[PilotfishError], PilotfishError] = lambda error: error,
    ) -> None:
        self.choice = choice  # why this engine: what was tried, where anything was
        self.tokenizer, self.template, self.calibration = tokenizer, template, calibration
        self.exact, self.narrow = exact, exact and narrow
        self.policy, self.cache, self.quality = policy, cache, quality
        self._target = target
        self._draft = draft
        self._rules = rules or Rules()
        self.explain = explain
        self._max_entries = max_context
        self._self_draft = self_draft
        self._answering = open_answering(
            target,
            tokenizer,
            calibration,
            draft=draft,
            policy=policy,
            proposers=proposers,
            exact=exact,
            narrow=self.narrow,
            self_draft=self_draft,
            cache=cache,
            quality=quality,
            max_context=max_context,
            rules=self._rules,
            explain=explain,
        )
        self._sequence, self.lookups = self._answering.sequence, self._answering.lookups
        drafts = self._answering.drafts_with_model
        self._requests = Requests(
            tokenizer, template, self._rules, target.info, drafts=drafts, compressed=cache is not None
        )
        self._turns = Turns()
        self._closing = Closing(self._turns, self._answering, target, *(() if draft is None else (draft.weights,)))

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
            narrow=self.narrow,
            self_draft=self._self_draft if draft else None,
            cache=self.cache,
            quality=self.quality if self.cache is not None or drafts_itself else None,
            max_context=self._max_entries,
            rules=self._rules,
            explain=self.explain,
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
        stop: Stop = None,
        sampling: Sampling | None = None,
        raw: bool = False,
        special: bool = False,
        cancel: threading.Event | None = None,
        beams: int | Beams | None = None,
        language: str | None = None,
        source_language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        thinking: bool | None = None,
    ) -> Result:
        """The whole answer.

        prompt: a list of messages, or a text. A text is one user message where the model has a chat template;
            raw=True feeds it as it is. A model that listens takes what read_wav() gives, or features of its own.
        special: whether "<|fim_prefix|>" in a raw prompt means the special token; it is plain text otherwise.
        max_new_tokens: the default is 256, or what an encoder-decoder's own settings say, or fewer where there is room
            for fewer; a number that is given has to fit; None is until the context is full.
        temperature: 0 (the default) is greedy; `sampling` holds the other settings and replaces it.
        stop: a text or a token id that ends the answer, or several; None are none. The text is not part of the answer;
            that of a special token stops at the token, too.
        cancel: an event that ends the generation between two steps, prompt processing included.
        beams: search for the most probable answer with so many beginnings at a time (docs/encoder-decoder.md), without
            sampling and drafts. With a number alone, length penalty and early stopping are the model's own.
        language: of the answer ("fr_XX"), or of a recording ("fr"), by the model's own name; without one the language
            of a recording is heard. source_language: of the text, where the model is told; None: the tokenizer's.
        task: what a model of many languages that listens does: "transcribe" or "translate" (into English).
        timestamps: of a recording tell what was said when, a line for each part (Result.spoken).
        thinking: whether a model that can thinks first (Result.thinking); None leaves that to its template.
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
            special=special,
            cancel=cancel,
            beams=beams,
            language=language,
            source_language=source_language,
            task=task,
            timestamps=timestamps,
            thinking=thinking,
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
        stop: Stop = None,
        sampling: Sampling | None = None,
        raw: bool = False,
        special: bool = False,
        cancel: threading.Event | None = None,
        progress: Counted | None = None,
        beams: int | Beams | None = None,
        language: str | None = None,
        source_language: str | None = None,
        task: str | None = None,
        timestamps: bool = False,
        thinking: bool | None = None,
    ) -> Stream:
        """The answer piece by piece; iterate, then read `.result`. Options as in generate().

        progress: called with (tokens done, tokens in all) while the prompt is processed.
        """
        check_request(max_new_tokens=max_new_tokens, seed=seed, stop=stop)
        settings = one_sampling(temperature, sampling)
        self._turns.check_open()
        asked = self._requests.request(
            prompt,
            AnswerOptions(language, task, timestamps, source_language),
            max_new_tokens=max_new_tokens,
            sampling=settings,
            seed=seed,
            stop=stop,
            raw=raw,
            special=special,
            beams=beams,
            cancelled=cancel.is_set if cancel is not None else lambda: False,
            progress=progress,
            thinking=thinking,
        )

        def pieces(making: Making) -> Iterator[str]:  # holds this model, which stays open while a stream is read
            return self._answering.pieces(making, asked)

        return Stream(self._turns, pieces, trial=self._answering.trial, cancelled=asked.limits.cancelled)

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
        with self._turns.errand():
            self._sequence.truncate(self._sequence.reusable(context))
            return self._sequence.save()

    def restore_cache(self, saved: SavedSequence) -> None:
        """Hold what save_cache() gave. Raises OptionError and ContextFullError before anything changes."""
        with self._turns.errand():
            self._sequence.restore(saved)

    def encode(self, prompt: str | Sequence[Message], *, raw: bool = False, special: bool = False) -> Tokens:
        """Token ids of a prompt, chat template applied; of an encoder-decoder model those of the source."""
        source = self.info.encoder is not None
        return encode_prompt(prompt, raw, self.tokenizer, self.template, source=source, special=special)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end every answer: the tokenizer's, and what the template puts behind one."""
        return self._requests.ends

    def _check_template(self) -> None:
        if self.template is None:
            raise ChatTemplateError("this model has no chat template; use generate(text, raw=True).")

    def close(self) -> None:
        """Free caches and weights. A second close does nothing.

        An answer that another thread is making ends with its step, as does an unfinished stream: whoever waits for the
        rest gets an OptionError that says so, and `result` holds the text so far, as cancelled.
        Raises OptionError where it is called by what a step of this model calls.
        """
        self._closing.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
