"""What is asked of a model, and what can be said against it: some before there is a model to ask, the rest after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..checks import check_seed, shown, whole
from ..decoding.beam_search import Beams, check_beams
from ..decoding.loop import Limits, UpTo
from ..errors import OptionError
from ..interfaces import ModelInfo
from ..progress import Counted
from ..sampling.sampling import Sampling
from ..several import several
from ..text.chat_template import ChatTemplate, turn_end
from ..text.prompts import Prompt, Task, task_of
from ..text.text_assembler import Stop, stops_of
from ..text.tokenizer import Tokenizer
from .rules import AnswerOptions, Rules

ANSWER = UpTo(256)  # tokens of an answer whose length nobody asked for


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, checked."""

    task: Task
    sampling: Sampling
    limits: Limits
    stop: tuple[str, ...]
    seed: int | None
    beams: Beams | None


def check_request(*, max_new_tokens: int | None, seed: int | None = None, stop: Stop = None) -> None:
    """Raise OptionError for a number of new tokens, a seed or a stop that no answer can be made with."""
    if max_new_tokens is not None:
        whole("max_new_tokens", max_new_tokens, 1)
    check_seed(seed)
    wanted: tuple[object, ...] = several(stop)
    for one in wanted:
        if one == "":
            raise OptionError("a stop string is empty, so nothing could ever be generated; leave it out.")
        if not isinstance(one, str):
            whole("a stop token", one, 0)


def one_sampling(temperature: float | None, sampling: Sampling | None) -> Sampling:
    """The settings that a temperature or a Sampling stands for. Raises OptionError where both are given."""
    if sampling is None:
        return Sampling(temperature=temperature or 0.0)
    if not isinstance(sampling, Sampling):
        raise OptionError(f"sampling is {shown(sampling)}, but must be a pilotfish.Sampling.")
    if temperature is not None:
        raise OptionError("temperature and sampling are both given; put the temperature into Sampling.")
    return sampling


class Requests:
    """Makes requests to one model out of what its callers give.

    drafts: whether a model drafts; compressed: whether a policy compresses the cache.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        rules: Rules,
        info: ModelInfo,
        *,
        drafts: bool,
        compressed: bool,
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._rules, self._info = rules, info
        self._drafts, self._compressed = drafts, compressed

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end every answer: the tokenizer's, and what the template puts behind one."""
        behind = None if self._template is None else turn_end(self._tokenizer, self._template)
        return self._tokenizer.eos_ids if behind is None else self._tokenizer.eos_ids | {behind}

    def request(
        self,
        prompt: Prompt,
        options: AnswerOptions,
        *,
        max_new_tokens: int | None,
        sampling: Sampling,
        seed: int | None,
        stop: Stop,
        raw: bool,
        special: bool,
        beams: int | Beams | None,
        cancelled: Callable[[], bool],
        progress: Counted | None,
        thinking: bool | None,
    ) -> Request:
        """As in Model.stream(), whose options these are. Raises OptionError and ChatTemplateError."""
        searched = beams if beams is None or isinstance(beams, Beams) else self._rules.beams(beams)
        task = task_of(
            prompt, raw, self._tokenizer, self._template, self._info.encoder, special=special, thinking=thinking
        )
        task = self._rules.asked(task, options, task.hears)
        if max_new_tokens is ANSWER and task.source is not None:
            max_new_tokens = self._rules.longest(len(task.context), task.n_forced) or ANSWER
        strings, ids = stops_of(stop, self._tokenizer, self._info.vocab_size)
        if strings and options.timestamps:
            raise OptionError("with timestamps the text is told line by line, and cannot end at a string; drop stop.")
        if searched is not None:
            check_beams(sampling, strings, draft=self._drafts, cache=self._compressed)
        limits = Limits(max_new_tokens, self.ends | ids, cancelled, progress)
        return Request(task, sampling, limits, strings, seed, searched)
