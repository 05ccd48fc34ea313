"""A source that answers the questions of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...runtime.errors import ModelFileError
from ...runtime.interfaces import Floats, Tokens
from .parity import GreedyRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
