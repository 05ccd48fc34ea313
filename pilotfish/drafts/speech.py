"""A table of what a model says: it invents questions and answers them, and the answers are learned.

Source of the questions: Xu et al. 2024, Magpie: what an aligned model says behind the beginning of a user's turn is a
user's turn. A model without a chat template goes on with the beginnings of texts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..loading.load import load
from ..loading.opening import resolve
from ..loading.speech import keep_speech, kept_speech, require_kept
from ..runtime.checks import whole
from ..runtime.errors import OptionError, UnsupportedModelError
from ..runtime.model.model import Model
from ..runtime.progress import Progress
from ..runtime.sampling.sampling import Sampling
from ..runtime.speculation.ngram_table import NGramTable
from ..runtime.text.calibration_text import PROSE

_WHAT = "listening to the model"
_ASKING = Sampling(temperature=0.8, top_p=0.9)  # likely questions, and many
_QUESTION, _ANSWER = 64, 192  # tokens at most
_MOST = 1 << 18  # tokens at a time, as many as a table has slots
_KEPT_EVERY = 4096  # tokens after which the file is written
_PATIENCE = 50  # questions or answers in a row that may be empty
_MARK = "PILOTFISH"  # a word that no template says itself


@dataclass(frozen=True, slots=True)
class Speech:
    """What was learned: the file, the model's answers and their tokens, and whether it was ended before its time."""

    file: str
    n_answers: int
    n_tokens: int
    ended_early: bool


def learn_speech(
    target: str | os.PathLike[str],
    *,
    n_tokens: int = 50_000,
    engine: str | None = None,
    threads: int | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Speech:
    """Learn so many tokens of a model's answers, on top of what is known, and keep them for every load() of it.

    again: forget what is known. KeyboardInterrupt ends it early. What was learned is kept every so often, and however
    it ends. Raises OptionError, CacheWriteError, UnsupportedModelError for a model that says nothing, and what load()
    raises.
    """
    whole("--tokens", n_tokens, 1, _MOST, hint="a table of this size forgets as much as it learns then")
    report = progress or (lambda what, share: None)
    file = resolve(target, report)
    if file.is_encoder_decoder:
        raise OptionError(f"{file} answers about a source, which its drafts are copied from; it has no own speech.")
    require_kept(file)
    with load(file.path, engine, threads=threads, progress=report) as model:
        table = None if again else kept_speech(file, model.info.vocab_size)
        table = table or NGramTable()
        n_answers = learned = kept = 0
        try:
            for answer in _answers(model, seed=table.n_learned):
                table.learn(answer, 0)
                n_answers, learned = n_answers + 1, learned + len(answer)
                report(_WHAT, min(learned / n_tokens, 1.0))
                if learned >= n_tokens:
                    break
                if learned - kept >= _KEPT_EVERY:
                    keep_speech(file, table)
                    kept = learned
        except KeyboardInterrupt:
            if not learned:
                raise
        except BaseException:
            if learned > kept:
                keep_speech(file, table)
            raise
    return Speech(str(keep_speech(file, table)), n_answers, learned, learned < n_tokens)


def _answers(model: Model, seed: int) -> Iterator[tuple[int, ...]]:
    """Answers without end, none of them empty. seed: so that what is learned later is something else.

    Raises UnsupportedModelError for a model that says nothing, however often it is asked.
    """
    beginnings, silent = _beginnings(model), 0
    while silent < _PATIENCE:
        for beginning in beginnings:
            seed += 1
            asked = model.generate(
                beginning, raw=True, special=True, sampling=_ASKING, seed=seed, max_new_tokens=_QUESTION
            )
            said = asked.token_ids if model.template is None else ()
            if model.template is not None and asked.text.strip():
                said = model.generate(asked.text.strip(), max_new_tokens=_ANSWER).token_ids
            silent = 0 if said else silent + 1
            if said:
                yield said
    raise UnsupportedModelError(
        f"this model invents no questions, or answers none: {_PATIENCE} times in a row nothing came. There is no "
        "speech of it to learn; its drafts come from the text alone."
    )


def _beginnings(model: Model) -> list[str]:
    if model.template is not None:
        tokenizer = model.tokenizer
        bos = None if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)
        text = model.template.render([{"role": "user", "content": _MARK}], bos_token=bos)
        return [text.partition(_MARK)[0].removeprefix(bos or "")]
    return [" ".join(line.split()[:3]) for line in PROSE if len(line.split()) > 3]
