"""What a smaller KV cache costs on an OpenVINO bundle, and which one is worth asking for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import backends
from ..runtime.files.bundle import Bundle
from ..runtime.interfaces import Floats, Tokens
from ..runtime.profiling.teacher_forced import logits_along_text
from ..runtime.sampling.log_softmax import log_softmax

KINDS = ("u8", "u8/u4", "u4")  # of keys/values, the larger first
LIMIT = 0.02  # nats a token: what int8 weights cost, roughly; nobody notices it

_WIDTH = 16  # rows of a step: the entries before it are read from the cache, those of the step itself as well


@dataclass(frozen=True, slots=True)
class CacheLoss:
    """One type of cache against f32 on the same weights, over all tokens of all texts."""

    kv_dtype: str
    kl: float  # nats a token
    top1: float  # share of tokens after which both find the same one most probable
    bytes_per_token: float


def measure_cache_types(
    bundle: Bundle, texts: Sequence[Tokens], *, threads: int, kinds: Sequence[str] = KINDS
) -> tuple[CacheLoss, ...]:
    """What each type of cache costs on the OpenVINO format of a bundle.

    texts: a hundred tokens or more each; they are read once for every type. Raises what opening its weights raises.
    """
    exact, _ = _answers(bundle, texts, "f32", threads)
    found = []
    for kind in kinds:
        answers, n_bytes = _answers(bundle, texts, kind, threads)
        kl = [float((np.exp(p) * (p - q)).sum(axis=-1).mean()) for p, q in zip(exact, answers, strict=True)]
        same = [float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean()) for p, q in zip(exact, answers, strict=True)]
        sizes = [len(text) for text in texts]
        found.append(
            CacheLoss(kind, float(np.average(kl, weights=sizes)), float(np.average(same, weights=sizes)), n_bytes)
        )
    return tuple(found)


def cache_hint(losses: Sequence[CacheLoss], limit: float = LIMIT) -> str | None:
    """The smallest cache that loses no more than the limit; None where all do."""
    good = [loss for loss in losses if loss.kl <= limit]
    return min(good, key=lambda loss: loss.bytes_per_token).kv_dtype if good else None


def _answers(bundle: Bundle, texts: Sequence[Tokens], kind: str, threads: int) -> tuple[list[Floats], float]:
    """log p after every token of each text, and bytes of the cache a token."""
    weights = backends.get("openvino").open(bundle, device="cpu", threads=threads, kv_dtype=kind)
    try:
        rows, n_bytes = [], 0.0
        for text in texts:
            session = weights.session(len(text))
            logits = logits_along_text(session, text, len(text), widths=(_WIDTH,))
            rows.append(log_softmax(logits, np.float32))
            n_bytes = max(n_bytes, session.nbytes / len(text))
            session.close()
        return rows, n_bytes
    finally:
        weights.close()
