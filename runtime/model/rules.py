"""What a model was trained never to say and its settings for generating: part of its distribution, whoever drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np

from ..decoding.beam_search import Beams
from ..decoding.loop import UpTo
from ..errors import OptionError
from ..interfaces import Indices, Tokens, as_tokens
from ..sampling import processors
from ..sampling.generation import Generation
from ..sampling.sampling import LogitsProcessor, Sampling
from ..text.prompts import Task

_FEW, _CLOSE = 12, 5  # names that an error lists: all of so many, else the closest


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a request asks for beside its prompt: see Model.generate()."""

    language: str | None = None
    task: str | None = None
    timestamps: bool = False
    source_language: str | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """The answer that rules are for.

    n_prompt: tokens that it goes on from; n_forced: of them, those that transformers counts as generated.
    end: length of the context at which it ends; None: nobody knows. ends: tokens that end it, the model's own first.
    read: tokens of the source, or of a decoder's prompt; None: they are no tokens. first_time: as of Task.
    """

    n_prompt: int
    n_forced: int = 0
    end: int | None = None
    ends: tuple[int, ...] = ()
    read: Tokens | None = None
    first_time: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Token ids without a chance anywhere in an answer, those that no answer begins with, and the other settings.

    The names are those of transformers' settings for generating.
    """

    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    generation: Generation = field(default_factory=Generation)

    def applied(self, sampling: Sampling, frame: Frame) -> Sampling:
        """The same settings under these rules. What the caller's own processors do comes later, and a caller's
        repetition penalty takes the place of the model's."""
        found = self.processors(frame, penalty=sampling.repetition_penalty == 1.0)
        return replace(sampling, processors=(*found, *sampling.processors)) if found else sampling

    def processors(self, frame: Frame, *, penalty: bool = True) -> tuple[LogitsProcessor, ...]:
        """What the rules do to logits, in the order of transformers. penalty: whether repetitions are penalised."""
        return (*self._weighing(frame, penalty), *self._ending(frame), *self._silencing(frame))

    def _weighing(self, frame: Frame, penalty: bool) -> Iterator[LogitsProcessor]:
        said, read = self.generation, frame.read
        if said.sequence_bias:
            yield processors.biased(said.sequence_bias)
        if said.encoder_repetition_penalty != 1.0 and read is not None:
            yield processors.scaled(1 / said.encoder_repetition_penalty, read)
        if said.repetition_penalty != 1.0 and penalty:
            yield processors.scaled(said.repetition_penalty)
        if said.no_repeat_ngram_size:
            yield processors.without_repeats(said.no_repeat_ngram_size)
        if said.encoder_no_repeat_ngram_size and read is not None:
            yield processors.without_runs_of(read, said.encoder_no_repeat_ngram_size)
        if said.bad_words_ids:
            yield processors.biased((word, -np.inf) for word in said.bad_words_ids)

    def _ending(self, frame: Frame) -> Iterator[LogitsProcessor]:
        said, ends = self.generation, _indices(frame.ends)
        start = frame.n_prompt - frame.n_forced
        shortest = said.min_length if said.min_new_tokens is None else start + said.min_new_tokens
        if shortest > frame.n_prompt and len(ends):
            yield processors.without(ends, below=shortest)
        if said.forced_eos_token_id and frame.end is not None:
            yield processors.forced(_indices(said.forced_eos_token_id), frame.end - 1)
        if said.exponential_decay_length_penalty is not None and len(ends):
            after, factor = said.exponential_decay_length_penalty
            yield processors.ending_sooner(ends, start + after, factor)

    def _silencing(self, frame: Frame) -> Iterator[LogitsProcessor]:
        if self.suppress_tokens:
            yield processors.without(_indices(self.suppress_tokens))
        if self.begin_suppress_tokens:
            yield processors.without(_indices(self.begin_suppress_tokens), at=frame.n_prompt)
        if frame.first_time is not None and frame.ends:
            latest = self.generation.max_initial_timestamp_index
            yield processors.with_times(frame.first_time, frame.ends[0], frame.n_prompt, latest)

    def lifted(self) -> Rules:
        """These rules without any that changes what an answer says; it can still be asked for languages and times."""
        kept = ("languages", "language_in_source", "tasks", "no_timestamps_token_id", "max_initial_timestamp_index")
        return Rules(generation=Generation(**{name: getattr(self.generation, name) for name in kept}))

    def longest(self, n_prompt: int, n_forced: int) -> UpTo | None:
        """New tokens that an answer has at most where nobody asked for a number; None: the settings do not say."""
        said = self.generation
        if said.max_new_tokens is not None:
            return UpTo(max(1, said.max_new_tokens - n_forced))
        return None if said.max_length is None else UpTo(max(1, said.max_length - n_prompt))

    def language_of(self, context: Tokens) -> str | None:
        """The name of the language that a context asks for."""
        asked = frozenset(context.tolist())
        return next((name for name, token in self.generation.languages.items() if token in asked), None)

    def beams(self, size: int) -> Beams:
        """So many beams, weighed as the settings say. Raises OptionError."""
        return Beams(size, self.generation.length_penalty, self.generation.early_stopping)

    def require_known(self, options: AnswerOptions, hears: bool) -> None:
        """Raise OptionError for what the model cannot be asked for, with what it can. hears: its source is a
        recording."""
        said = self.generation
        for name, wanted, there in (
            ("language", options.language, said.languages),
            ("source language", options.source_language, said.languages),
            ("task", options.task, said.tasks),
        ):
            if wanted is not None and wanted not in there:
                raise OptionError(f"the model has no token for the {name} {wanted!r}; {_known(wanted, there)}.")
        if hears:
            if options.source_language is not None:
                raise OptionError("a recording's own language is asked for by language alone; drop source_language.")
        elif options.timestamps:
            raise OptionError("timestamps are asked of models that listen, and this one reads text; drop them.")

    def asked(self, task: Task, options: AnswerOptions, hears: bool) -> Task:
        """The task as the request wants it. hears: the source is a recording. Raises what require_known() raises."""
        self.require_known(options, hears)
        if hears:
            return self._listening(task, options)
        if options.source_language is not None:
            task = replace(task, source=self._from_language(task.words, options.source_language))
        return task if options.language is None else self._in_language(task, options.language)

    def _in_language(self, task: Task, language: str) -> Task:
        """The answer begins with the language's token, or, where the model wants that, the source does."""
        languages, token = self.generation.languages, self.generation.languages[language]
        if self.generation.language_in_source and task.words is not None:
            source = task.words.tolist()
            kept = source[1:] if source[0] in languages.values() else source
            return replace(task, source=as_tokens([token, *kept]))
        context = task.context.tolist()
        kept = context[:-1] if context[-1] in languages.values() else context
        return replace(task, context=as_tokens([*kept, token]))

    def _from_language(self, source: Tokens | None, language: str) -> Tokens:
        """The source with another language named, where the model's tokenizer names one: before it, or behind."""
        named = self.generation.languages
        at = next((i for i in (0, -1) if source is not None and int(source[i]) in named.values()), None)
        if source is None or at is None or self.generation.language_in_source:
            raise OptionError("this model is not told which language a text is in; drop source_language.")
        changed = source.copy()
        changed[at] = named[language]
        return changed

    def _listening(self, task: Task, options: AnswerOptions) -> Task:
        """Start token, language, task and whether no times are wanted; without a language the one that is heard."""
        said, (start, *rest) = self.generation, task.context.tolist()
        silent = said.no_timestamps_token_id
        if options.timestamps and silent is None:
            raise OptionError(
                "the model's settings do not say how it tells times; drop timestamps, or export it again."
            )
        detect: tuple[int, ...] = ()
        if said.languages:
            spoken = next((t for t in rest if t in said.languages.values()), None)
            spoken = said.languages[options.language] if options.language is not None else spoken
            if spoken is None:
                detect = tuple(sorted(said.languages.values()))
            given = next((t for t in rest if t in said.tasks.values()), said.tasks.get("transcribe"))
            given = said.tasks[options.task] if options.task is not None else given
            told = [detect[0] if spoken is None else spoken, *([] if given is None else [given])]
            rest = [*told, *(t for t in rest if t not in said.languages.values() and t not in said.tasks.values())]
        rest = [t for t in rest if not (options.timestamps and t == silent)]
        first_time = silent + 1 if options.timestamps and silent is not None else None
        return replace(task, context=as_tokens([start, *rest]), detect=detect, first_time=first_time)


def _known(wanted: str, there: Mapping[str, int]) -> str:
    """What a model can be asked for instead."""
    if len(there) <= _FEW:
        return f"those it has are {', '.join(sorted(there))}" if there else "it has none; drop it"
    low = {name.lower(): name for name in there}
    begun = [name for name in low if name.startswith(wanted.lower()[:2])]
    close = get_close_matches(wanted.lower(), begun or low, n=_CLOSE, cutoff=0.0)
    names = ", ".join(low[name] for name in close)
    return f"close are {names}, and `pilotfish inspect` lists all {len(there)}"


def _indices(tokens: tuple[int, ...]) -> Indices:
    return np.array(sorted(tokens), dtype=np.int64)
