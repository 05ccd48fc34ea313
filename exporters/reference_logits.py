"""What the source answers in f32: the judge of every export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..runtime.canary import Canary
from ..runtime.errors import ModelFileError
from ..runtime.interfaces import Floats, Tokens
from ..runtime.manifest import GreedyAnswer
from .evaluation import Evaluation
from .parity import Answers, GreedyRun, Parity, Tally, answers_to
from .rounding import rounded
from .weight_form import WeightForm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .model_source import ModelSource

_CANARY_TOKENS, _CANARY_ANSWERS = 48, 14  # as runtime/canary.py asks them
_GREEDY = 16


class SourceJudge:
    """A torch model that answers. It is not changed, and is no longer held than the judge is."""

    start: tuple[int, ...] = ()  # what every answer begins with

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def source(self, text: Tokens) -> Tokens | None:
        """What is read before a text; None for nothing, or for a stand-in of it."""
        return None

    def logits(self, tokens: Tokens, n_logits: int | None = None) -> Floats:
        """Logits after each of the last `n_logits` tokens (None: all), every token given: (n_logits, vocab_size).

        Raises ModelFileError where they are not finite.
        """
        n = len(tokens) if n_logits is None else n_logits
        with torch.inference_mode():
            ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
            rows = self.model(input_ids=ids, use_cache=False, logits_to_keep=n).logits[0]
        if not torch.isfinite(rows).all():
            raise ModelFileError(
                "the source's own answers are not finite numbers: its weights are damaged, or were stored in too few "
                "bits. Fetch or copy it again."
            )
        return np.asarray(rows.float().numpy(), np.float32)

    def greedy(self, prompts: Sequence[Tokens], n_tokens: int) -> tuple[GreedyRun, ...]:
        """The best token again and again, and how much better than the second it was each time.

        All prompts take a step together, the shorter ones padded on the left: weights are read once for all of them.
        """
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), width), dtype=torch.int64)
        seen = torch.zeros((len(prompts), width), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(np.asarray(prompt, np.int64))
            seen[row, width - len(prompt) :] = 1
        positions, past, best, gaps = (seen.cumsum(-1) - 1).clamp(min=0), None, [], []
        with torch.inference_mode():
            for _ in range(n_tokens):
                out = self.model(
                    input_ids=ids,
                    attention_mask=seen,
                    position_ids=positions,
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                )
                past, top = out.past_key_values, torch.topk(out.logits[:, -1].float(), 2)
                best.append(top.indices[:, 0].numpy())
                gaps.append((top.values[:, 0] - top.values[:, 1]).numpy())
                ids, positions = top.indices[:, :1], positions[:, -1:] + 1
                seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        return tuple(
            GreedyRun(np.asarray(prompt, np.int64), np.stack(best)[:, row], np.stack(gaps)[:, row])
            for row, prompt in enumerate(prompts)
        )


def judge_of(source: ModelSource, model: PreTrainedModel) -> SourceJudge:
    """Who answers for a source."""
    if source.pair is None:
        return SourceJudge(model)
    from .seq2seq_judge import PairJudge

    return PairJudge(model, source.pair)


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
    judge: SourceJudge, evaluation: Evaluation, progress: Callable[[float], None] | None = None
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
