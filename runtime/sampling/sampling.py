"""Logits to distribution: one set of rules, applied alike to the target (p) and to a draft model (q)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import numpy as np

from ..checks import real, shown, whole
from ..errors import NotFiniteError, OptionError
from ..interfaces import Distribution, Floats, Tokens
from ..several import several

LogitsProcessor: TypeAlias = Callable[[Floats, Tokens], Floats]
"""(logits (vocab_size,), context with the drafted path) -> logits. Keeps no state: speculation asks out of order."""

_STRONGEST = 1e6  # of a penalty or bias: far beyond any logit, and far from what f32 cannot hold
_HEAD = 1024  # tokens looked at before top-p falls back to sorting the vocabulary


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy decoding.

    Applied in this order (as in transformers): logit_bias, repetition_penalty, presence and frequency penalty,
    processors, temperature, top_k, top_p, min_p.
    """

    temperature: float = 0.0  # 0: the most probable token
    top_k: int | None = None  # ties with the k-th logit are kept
    top_p: float | None = None  # smallest set with at least this mass
    min_p: float | None = None  # at least this fraction of the largest probability
    repetition_penalty: float = 1.0  # divides logits > 0 of tokens in the context (Keskar et al. 2019)
    presence_penalty: float = 0.0  # subtracted once from every token generated so far
    frequency_penalty: float = 0.0  # subtracted once per occurrence in the generated text
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # None is none
    processors: tuple[LogitsProcessor, ...] = ()  # None is none; one alone is one
    _as_they_are: bool = field(init=False, repr=False, compare=False)  # whether logits are not adjusted

    def __post_init__(self) -> None:
        self._number("temperature", "0 (greedy) or more", lambda x: x >= 0)
        if self.top_k is not None:
            whole("top_k", self.top_k, 1, hint="or absent")
        if self.top_p is not None:
            self._number("top_p", "above 0 and at most 1, or absent", lambda x: 0 < x <= 1)
        if self.min_p is not None:
            self._number("min_p", "from 0 to 1, or absent", lambda x: 0 <= x <= 1)
        limit = f"above 0 (1 is off), and neither it nor its inverse above {_STRONGEST:g}"
        self._number("repetition_penalty", limit, lambda x: 1 / _STRONGEST <= x <= _STRONGEST)
        for name in ("presence_penalty", "frequency_penalty"):
            limit = f"from -{_STRONGEST:g} to {_STRONGEST:g} (0 is off)"
            self._number(name, limit, lambda x: abs(x) <= _STRONGEST)
        self._check_logit_bias()
        object.__setattr__(self, "processors", several(self.processors))
        for processor in self.processors:
            if not callable(processor):
                raise OptionError(f"a logits processor is {shown(processor)}, but must be a function of logits.")
        counted = self.presence_penalty or self.frequency_penalty
        adjusted = counted or self.repetition_penalty != 1.0 or self.logit_bias or self.processors
        object.__setattr__(self, "_as_they_are", not adjusted)  # asked for every token

    def _number(self, name: str, limit: str, fits: Callable[[float], bool]) -> None:
        """Check a setting, and keep it as a float: what is too small for one is 0 wherever it is looked at."""
        object.__setattr__(self, name, real(name, getattr(self, name), limit, fits))

    def _check_logit_bias(self) -> None:
        object.__setattr__(self, "logit_bias", {} if self.logit_bias is None else self.logit_bias)
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError(f"logit_bias is {shown(self.logit_bias)}, but must map token ids to numbers.")
        for token, bias in self.logit_bias.items():
            whole("a token of logit_bias", token, 0)
            if bias != -math.inf:  # which rules a token out
                limit = f"-inf, or from -{_STRONGEST:g} to {_STRONGEST:g}"
                real(f"logit_bias[{token}]", bias, limit, lambda x: abs(x) <= _STRONGEST)

    @property
    def greedy(self) -> bool:
        """Whether every distribution is one certain token."""
        return self.temperature == 0.0

    def distribution(self, logits: Floats, context: Tokens, n_prompt: int) -> Distribution:
        """The distribution of the token that follows `context`.

        logits: (vocab_size,) after the context's last token; not modified.
        context: prompt, output and drafted path; the first n_prompt tokens are the prompt.
        """
        if self.greedy:
            return Distribution.point(self.best(logits, context, n_prompt))
        return self._truncate(logits if self._as_they_are else self._adjust(logits, context, n_prompt))

    def best(self, logits: Floats, context: Tokens, n_prompt: int) -> int:
        """The most probable token to follow: what greedy decoding is certain of. Arguments as for distribution()."""
        adjusted = logits if self._as_they_are else self._adjust(logits, context, n_prompt)
        token = int(adjusted.argmax())
        top = adjusted.item(token)
        if not math.isfinite(top):
            _refuse(top)
        return token

    def _adjust(self, logits: Floats, context: Tokens, n_prompt: int) -> Floats:
        logits = logits.copy()
        for token, bias in self.logit_bias.items():
            if not 0 <= token < len(logits):
                raise OptionError(f"logit_bias names token {token}, but the vocabulary has {len(logits)} tokens.")
            logits[token] += bias
        if self.repetition_penalty != 1.0:
            seen = np.unique(context)
            x = logits[seen]
            logits[seen] = np.where(x > 0, x / self.repetition_penalty, x * self.repetition_penalty)
        if (self.presence_penalty or self.frequency_penalty) and len(context) > n_prompt:
            seen, counts = np.unique(context[n_prompt:], return_counts=True)
            logits[seen] -= (self.presence_penalty + self.frequency_penalty * counts).astype(logits.dtype)
        for processor in self.processors:
            logits = processor(logits, context)
        return logits

    def _truncate(self, logits: Floats) -> Distribution:
        top = float(logits.max())
        if not math.isfinite(top):
            _refuse(top)
        ids = None
        if self.top_k is not None and self.top_k < len(logits):
            kth = np.partition(logits, -self.top_k)[-self.top_k]
            ids = np.flatnonzero(logits >= kth)
        x = (logits if ids is None else logits[ids]).astype(np.float64)
        with np.errstate(over="ignore"):  # a temperature of almost nothing: -inf is a chance of 0, as it should be
            probs = np.exp((x - top) / self.temperature)
        probs /= probs.sum()
        if self.top_p is not None and self.top_p < 1.0:
            kept = _nucleus(probs, self.top_p)
            ids, probs = (kept if ids is None else ids[kept]), probs[kept]
        if self.min_p:
            kept = np.flatnonzero(probs >= self.min_p * probs.max())
            ids, probs = (kept if ids is None else ids[kept]), probs[kept]
        return Distribution(probs / probs.sum(), ids)


def _nucleus(probs: np.ndarray, mass: float) -> np.ndarray:
    """Indices, ascending, of the smallest set of most probable tokens that holds `mass`."""
    head = np.arange(len(probs))
    if len(probs) > _HEAD:
        candidates = np.argpartition(-probs, _HEAD)[:_HEAD]
        if probs[candidates].sum() >= mass:
            head = np.sort(candidates)
    order = head[np.argsort(-probs[head], kind="stable")]
    n = int(np.searchsorted(np.cumsum(probs[order]), mass)) + 1
    return np.sort(order[:n])


def _refuse(top: float) -> NoReturn:
    """There is no most probable token: its logit is this one."""
    if top == -math.inf:
        raise OptionError("the logit processors left no token to choose from; loosen the bias, grammar or processor.")
    raise NotFiniteError(
        "the engine computed logits that are not numbers: the model's weights are damaged, the engine fails at them "
        "or a logits processor made them so. Fetch or export the model anew, or choose another engine or device."
    )
