"""A recording, window by window: what its language is, where the next window begins, and what was said when.

Source: Radford et al. 2022, section 4.5, in the form of transformers' WhisperGenerationMixin (_retrieve_segment).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..cache.sequence import CachedSequence
from ..interfaces import Floats, Round, Tokens, as_tokens
from ..text.prompts import Task
from ..text.text_assembler import Collected
from ..text.tokenizer import Tokenizer

FRAMES_S = 100  # frames of sound a second
STRIDE = 2  # frames from one time that a model can say to the next


@dataclass(frozen=True, slots=True)
class Spoken:
    """A part of a recording, in seconds from its beginning, and what was said in it."""

    start_s: float
    end_s: float
    text: str

    def __str__(self) -> str:
        return f"[{self.start_s:.2f} -> {self.end_s:.2f}] {self.text}"


@dataclass(slots=True)
class Windows:
    """The windows of one recording. heard: (bins, frames); size: frames of a window.

    first_time: the token that says 0.00; None: no times are said, and windows follow each other.
    """

    heard: Floats
    size: int
    tokenizer: Tokenizer
    first_time: int | None = None
    spoken: list[Spoken] = field(default_factory=list)
    context: Tokens = field(default_factory=lambda: as_tokens([]))  # that the last window was asked with
    _at: int = 0

    @property
    def window(self) -> Floats:
        """What the encoder reads next, with nothing behind the recording's end."""
        part = self.heard[:, self._at : self._at + self.size]
        return np.pad(part, ((0, 0), (0, self.size - part.shape[1])))

    def of(self, task: Task, sequence: CachedSequence) -> Task:
        """What is asked about the window; a language that nobody named is heard first."""
        heard, context = self.window, task.context.copy()
        if task.detect:
            context[1] = detected(sequence, heard, int(context[0]), task.detect)
        self.context = context
        return replace(task, context=context, source=heard, detect=())

    def move(self, tokens: Sequence[int]) -> bool:
        """Go on behind what these tokens tell, the one that ends them left out; whether sound is left."""
        n_frames = min(self.size, self.heard.shape[1] - self._at)
        found: list[Spoken] = []
        step = n_frames
        if self.first_time is not None:
            found, step = self._parts(list(tokens), n_frames, self.first_time)
            found = [one for one in found if one.text]
        self.spoken += found
        self._at += step if step > 0 else n_frames
        return bool(self._at < self.heard.shape[1])

    def _parts(self, tokens: list[int], n_frames: int, first: int) -> tuple[list[Spoken], int]:
        """What was said between two times each, and the frames that this is about.

        Behind the last pair of times a sentence is cut by the window's end: it is heard again from there.
        """
        is_time = [token >= first for token in tokens]
        pairs = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
        if not pairs:
            last = next((token - first for token in reversed(tokens) if token > first), n_frames // STRIDE)
            return [self._spoken(tokens, 0, last)], n_frames
        ends_once = is_time[-2:] == [False, True]
        cuts = [0, *pairs, len(tokens)] if ends_once else [0, *pairs]
        parts = [tokens[a:b] for a, b in itertools.pairwise(cuts)]
        found = [self._spoken(part, part[0] - first, part[-1] - first) for part in parts]
        return found, n_frames if ends_once else (tokens[pairs[-1] - 1] - first) * STRIDE

    def _spoken(self, tokens: list[int], start: int, end: int) -> Spoken:
        assert self.first_time is not None
        text = self.tokenizer.decode(token for token in tokens if token < self.first_time).strip()
        at, unit = self._at / FRAMES_S, STRIDE / FRAMES_S
        return Spoken(at + max(0, start) * unit, at + end * unit, text)


class Lines(Collected):
    """What was said when, line by line, where an answer says times: takes the place of TextAssembler."""

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.windows, self._n_lines = windows, 0

    def push(self, done: Round) -> tuple[str, Round]:
        """The lines of a window, once it has ended, and the round as it is."""
        self._ids += done.tokens
        new = self.windows.spoken[self._n_lines :]
        self._n_lines += len(new)
        lines = "".join(f"{one}\n" for one in new)
        self._shown.append(lines)
        return lines, done

    def finish(self) -> str:
        """Nothing is ever held back."""
        return ""


def told(
    windows: Windows,
    task: Task,
    sequence: CachedSequence,
    ends: frozenset[int],
    answer: Callable[[Task], Iterator[Round]],
) -> Iterator[Round]:
    """The rounds of every window as those of one answer. answer: the rounds of one; ends: tokens that end a window."""
    more = True
    while more:
        part = windows.of(task, sequence)
        task = replace(task, context=part.context, detect=())  # what was heard first is spoken in all of it
        said: list[int] = []
        for done in answer(part):
            said += done.tokens
            if done.finish_reason is not None:
                stopped = done.finish_reason == "stop" and said[-1] not in ends
                more = windows.move([t for t in said if t not in ends]) and not stopped
                more = more and done.finish_reason != "cancelled"
                done = replace(done, finish_reason=None) if more else done
            yield done


def detected(sequence: CachedSequence, heard: Floats, start: int, languages: Sequence[int]) -> int:
    """The token of the language that is spoken: the likeliest of these behind the start token, found in one step."""
    sequence.encode(heard)
    sequence.truncate(0)
    logits = sequence.logits_after(np.array([start], dtype=np.int64))[0]
    found = languages[int(np.argmax(logits[list(languages)]))]
    sequence.truncate(0)
    return found
