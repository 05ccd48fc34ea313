"""How far an encoder-decoder in a GGUF file is from its source: llama.cpp itself is asked, because the llamacpp engine
has no session for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from .exporters.llama_pair import Question, ask_llama_cpp
from .exporters.parity import Answers, Parity, Tally
from .runtime.canary import Canary, answer_error
from .runtime.interfaces import Floats, Tokens


def compare_pair(
    path: Path,
    start: tuple[int, ...],
    answers: Answers,
    logits: Mapping[str, Floats] | None,
    canary: Canary | None,
    threads: int,
    tell: Callable[[float], None],
) -> tuple[Parity, float | None]:
    """The comparison, and the error of the canary, where there is one.

    start: what every answer begins with. logits: the source's, text by text, where it was asked anew.
    Raises EngineError where llama.cpp cannot run the file.
    """
    questions = [
        Question(_ids(text.tokens), (*start, *_ids(text.tokens)), len(text.top_ids)) for text in answers.texts.values()
    ]
    questions += [Question(_ids(run.prompt), (*start, *_ids(run.ids[:-1])), len(run.ids)) for run in answers.runs]
    if canary is not None:
        questions.append(Question(canary.source, canary.tokens, len(canary.best)))
    found, tally = ask_llama_cpp(path, questions, threads), Tally(answers)
    for done, name in enumerate(answers.texts):
        tally.add_text(name, next(found), None if logits is None else logits[name])
        tell((done + 1) / len(questions))
    for number in range(len(answers.runs)):
        tally.add_answer(number, next(found).argmax(axis=-1).astype(np.int64))
        tell((len(answers.texts) + number + 1) / len(questions))
    error = None if canary is None else answer_error(next(found), np.array(canary.best, np.int64))
    found.close()
    return tally.result(), error


def _ids(tokens: Tokens) -> tuple[int, ...]:
    return tuple(tokens.tolist())
