"""What the source answers in f32: the judge of every export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.files.manifest import GreedyAnswer
from ...runtime.interfaces import Floats, Tokens
from ...runtime.profiling.canary import Canary
from ...runtime.progress import Share
from ..quantize.rounded_model import rounded
from ..quantize.weight_form import WeightForm
from .evaluation import Evaluation
from .judge import SourceJudge
from .parity import Answers, Parity, Tally, answers_to

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..sources.model_source import ModelSource

_CANARY_TOKENS, _CANARY_ANSWERS = 48, 14  # as runtime/profiling/canary.py asks them
_GREEDY = 16


def judge_of(source: ModelSource, model: PreTrainedModel) -> SourceJudge:
    """Who answers for a source."""
    if source.encoder_decoder is None:
        return SourceJudge(model)
    from .encoder_decoder_judge import EncoderDecoderJudge

    return EncoderDecoderJudge(model, source.encoder_decoder)


def rounding_alone(judge: SourceJudge, answers: Answers, logits: Mapping[str, Floats], form: WeightForm) -> Parity:
    """How far the source is from itself once its weights are rounded as the form says, and nothing else is done.

    An export of this form cannot be asked for less, and one that is much further off has another fault. Each matrix is
    rounded while it is used: no second copy is in memory.
    """
    tally = Tally(answers)
    with rounded(judge.model, form):
        for name, text in answers.texts.items():
            tally.add_text(name, judge.logits(text.tokens, len(text.top_ids)), logits[name])
    return tally.result()


def judge_answers(
    judge: SourceJudge, evaluation: Evaluation, progress: Share | None = None
) -> tuple[Answers, dict[str, Floats]]:
    """What the source answers to the evaluation, to be stored, and its whole logits, to be compared with now."""
    report, logits = progress or (lambda share: None), {}
    steps = len(evaluation.texts) + 1
    for i, (name, tokens) in enumerate(evaluation.texts.items()):
        logits[name] = judge.logits(tokens, evaluation.scored(name))
        report((i + 1) / steps)
    runs = judge.greedy(evaluation.prompts, _GREEDY)
    report(1.0)
    return answers_to(evaluation.texts, logits, runs), logits


def judge_canary(judge: SourceJudge, text: Tokens, context_length: int) -> tuple[Canary, GreedyAnswer]:
    """The known answer that every device is asked for, and how the source goes on after it."""
    tokens = text[: max(1, min(_CANARY_TOKENS, context_length - _GREEDY) - len(judge.start))]
    logits = judge.logits(tokens, min(_CANARY_ANSWERS, len(tokens)))
    top = np.partition(logits, -2, axis=-1)[:, -2:]
    canary = Canary(
        tokens=(*judge.start, *tokens.tolist()),
        source=() if (read := judge.source(tokens)) is None else tuple(read.tolist()),
        best=tuple(logits.argmax(axis=-1).tolist()),
        gaps=tuple((top[:, 1] - top[:, 0]).astype(float).tolist()),
    )
    (run,) = judge.greedy([tokens], _GREEDY)
    return canary, GreedyAnswer(ids=tuple(run.ids.tolist()), gaps=tuple(run.gaps.astype(float).tolist()))
