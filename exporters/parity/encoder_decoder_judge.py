"""What an encoder-decoder answers in f32: the judge of its exports.

Every text is read twice, by the encoder and then, after the tokens that answers begin with, by the decoder; a prompt is
what the encoder reads. One that hears is given silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...runtime.interfaces import Floats, Tokens
from .judge import SourceJudge
from .parity import GreedyRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..sources.encoder_decoder_families import EncoderDecoderFacts


class EncoderDecoderJudge(SourceJudge):
    """A torch encoder-decoder that answers. It is not changed."""

    def __init__(self, model: PreTrainedModel, facts: EncoderDecoderFacts) -> None:
        super().__init__(model)
        self.start, self._hears = facts.decoder_start, facts.source_kind == "audio"
        self._silence: Any = None  # as the encoder sees it: the same for every text

    def source(self, text: Tokens) -> Tokens | None:
        return None if self._hears else text

    def logits(self, tokens: Tokens, n_logits: int | None = None) -> Floats:
        n = len(tokens) if n_logits is None else n_logits
        with torch.inference_mode():
            rows = self._decode(self._encode(tokens), [*self.start, *tokens])[-n:]
        return np.asarray(rows.numpy(), np.float32)

    def greedy(self, prompts: Sequence[Tokens], n_tokens: int) -> tuple[GreedyRun, ...]:
        return tuple(self._answer(prompt, n_tokens) for prompt in prompts)

    def _answer(self, prompt: Tokens, n_tokens: int) -> GreedyRun:
        ids, gaps = list(self.start), []
        with torch.inference_mode():
            encoded = self._encode(prompt)
            for _ in range(n_tokens):
                top = torch.topk(self._decode(encoded, ids)[-1], 2)
                ids.append(int(top.indices[0]))
                gaps.append(float(top.values[0] - top.values[1]))
        answer = np.array(ids[len(self.start) :], np.int64)
        return GreedyRun(np.asarray(prompt, np.int64), answer, np.array(gaps, np.float32))

    def _encode(self, text: Tokens) -> Any:
        model: Any = self.model
        if self._hears:
            if self._silence is None:
                bins, frames = model.config.num_mel_bins, 2 * model.config.max_source_positions
                self._silence = model.get_encoder()(torch.zeros(1, bins, frames))
            return self._silence
        return model.get_encoder()(torch.from_numpy(np.asarray(text, np.int64))[None])

    def _decode(self, encoded: Any, tokens: Sequence[int]) -> Any:
        """Logits after each of the tokens."""
        model: Any = self.model
        ids = torch.tensor([[int(token) for token in tokens]])
        return model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits[0].float()
