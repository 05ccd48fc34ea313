"""Tasks of the benchmark for encoder-decoder models: answers that copy their source, nearly, less so, or not at all.

What a model answers would decide how much can be copied, so the answer is given: a processor of logits makes it the
most probable one. Every step is computed as ever; only what comes of it is known before.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.interfaces import Floats, Tokens
from ...runtime.model.model import Model

SETS = {"copied 97 %": 0.97, "copied 85 %": 0.85, "unrelated": 0.0}  # characters of the answer that stand in its source
_LONGEST = 60  # words of a text
_CERTAIN = np.float32(1e9)  # above any logit


@dataclass(frozen=True, slots=True)
class CopyTask:
    """A source and the answer to it."""

    set: str
    source: str
    answer: str


def copy_tasks(texts: list[str], per_set: int) -> list[CopyTask]:
    """So many tasks of every set, made of these texts; the same ones every time."""
    draw = random.Random(0)
    words = [text.split()[:_LONGEST] for text in texts if len(text.split()) >= 20]
    known = sorted({word for text in words for word in text})
    tasks = []
    for name, share in SETS.items():
        for i in range(per_set):
            answer = words[i % len(words)]
            other = words[(i + len(words) // 2) % len(words)]
            source = _edited(answer, share, known, draw) if share else other
            tasks.append(CopyTask(name, " ".join(source), " ".join(answer)))
    return tasks


def _edited(words: list[str], share: float, known: list[str], draw: random.Random) -> list[str]:
    """The words, misspelled, replaced, left out and doubled one after the other, until only this share is left."""
    edited, answer = list(words), " ".join(words)
    while copied(" ".join(edited), answer) > share:
        i, kind = draw.randrange(len(edited)), draw.randrange(4)
        word = edited[i]
        if kind == 0 and len(word) > 2:
            at = draw.randrange(len(word) - 1)
            edited[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == 1:
            edited[i] = draw.choice(known)
        elif kind == 2 and len(edited) > 1:
            del edited[i]
        else:
            edited.insert(i, word)
    return edited


def copied(source: Sequence[Hashable], answer: Sequence[Hashable]) -> float:
    """Share of the answer that stands in the source, in its order."""
    blocks = difflib.SequenceMatcher(None, source, answer, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(answer)


@dataclass(frozen=True, slots=True)
class Forced:
    """A processor that makes these tokens the answer. start: length of the context before it."""

    answer: Tokens
    start: int

    def __call__(self, logits: Floats, context: Tokens) -> Floats:
        at = len(context) - self.start
        if at < len(self.answer):
            logits[self.answer[at]] = _CERTAIN
        return logits


def forced(model: Model, answer: str) -> Forced:
    """The processor for an answer of this model."""
    encoder = model.info.encoder
    assert encoder is not None
    return Forced(model.tokenizer.encode_source(answer), len(encoder.decoder_start))


def copied_share(model: Model, task: CopyTask) -> float:
    """Share of the answer's tokens that stand in the source."""
    source, answer = (model.tokenizer.encode_source(text).tolist() for text in (task.source, task.answer))
    return copied(source, answer)
