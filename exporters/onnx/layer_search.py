"""Which blocks a draft can do without: a short search over skip sets, scored by agreement with the whole model.

SWIFT (Xia et al. 2024) searches at random and by Bayesian optimisation while it generates. Here it is done once and
greedily: one block more at a time, each time the one without which the draft is worth most. What a block is worth
changes slowly from step to step, so only the most promising are asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from ...runtime.errors import EngineMissingError
from ...runtime.install import install_command
from ...runtime.interfaces import Tokens
from ...runtime.progress import Share
from .layer_drop import GATES, gated, sub_layers, without

Answer: TypeAlias = tuple[Tokens, int]  # a text, and where what the whole model said begins
Value: TypeAlias = Callable[[float, frozenset[int]], float]  # (agreement, skipped blocks) -> what such a draft is worth

_PAST = 32  # entries before a step that is timed; copied here, though not in use, so few
_MOST_SHARE = 0.95  # of a step that blocks can take; the rest is the output matrix
_TIMINGS = 40
_ASKED_AGAIN = 4
_PATIENCE = 6  # blocks more, without a better set, after which it does not get better


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of blocks to leave out, and how often the rest still says what the whole model says."""

    skipped: frozenset[int]
    agreement: float
    value: float


class _Runner:
    """A decoder graph in a session of ONNX Runtime; the weights stay in their file."""

    def __init__(self, model: onnx.ModelProto, folder: Path, threads: int, sliding_window: int | None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise EngineMissingError(
                f"leaving out layers needs the onnx engine. Add it with: {install_command('onnx')}"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._window = sliding_window

    def logits(self, tokens: Tokens, first_row: int, *, n_past: int = 0, gates: Any = None) -> Any:
        """Logits after the tokens from first_row on, behind n_past entries of zeros."""
        n, total = len(tokens), n_past + len(tokens)
        positions = np.arange(n_past, total, dtype=np.int64)
        given: dict[str, Any] = {
            "input_ids": tokens[None],
            "position_ids": positions[None],
            "logit_rows": np.arange(first_row, n, dtype=np.int64),
            "query_rows": np.zeros(0, dtype=np.int64),
            "bias": np.zeros((1, 1, n, total), dtype=np.float32),  # what comes later, the operator hides
            GATES: gates,
        }
        far = positions[:, None] - np.arange(total) >= (self._window or total)
        given["sliding_bias"] = np.where(far, np.float32(-np.inf), np.float32(0.0))[None, None]
        for name, about in self._inputs.items():
            if name.startswith("past_"):
                given[name] = np.zeros((1, about.shape[1], total, about.shape[3]), dtype=np.float32)
        return self._session.run(["logits"], {name: given[name] for name in self._inputs})[0]


class Scorer:
    """A decoder graph whose blocks can be switched off, and answers of the whole model to compare with."""

    def __init__(
        self, model_file: Path, answers: Sequence[Answer], threads: int, sliding_window: int | None = None
    ) -> None:
        model = onnx.load(model_file, load_external_data=False)
        self.blocks = sub_layers(model)
        self._answers = answers
        self._runner = _Runner(gated(model), model_file.parent, threads, sliding_window)

    def agreement(self, skipped: frozenset[int]) -> float:
        """Share of the answers' tokens that are the most probable ones without these blocks, given the text before."""
        gates = np.ones(len(self.blocks), dtype=np.float32)
        gates[list(skipped)] = 0.0
        right = total = 0
        for tokens, n_prompt in self._answers:
            logits = self._runner.logits(tokens[:-1], n_prompt - 1, gates=gates)
            right += int((logits.argmax(axis=1) == tokens[n_prompt:]).sum())
            total += len(tokens) - n_prompt
        return right / total


def step_shares(model_file: Path, threads: int, sliding_window: int | None = None) -> tuple[float, ...]:
    """For every block, the part of a step of one token that it takes here: the mean of its kind, (n_blocks,).

    Bytes would not tell: an attention block has few weights and many small operations. So the graph is run whole,
    without its attention blocks and without its MLPs, in turns, and the best of each counts. The first and the
    last layer stay in.
    """
    model = onnx.load(model_file, load_external_data=False)
    blocks = sub_layers(model)
    left_out: dict[str, list[int]] = {"": []}
    for i in range(2, len(blocks) - 2):
        left_out.setdefault(blocks[i].kind, []).append(i)
    best = dict.fromkeys(left_out, np.inf)
    runners = {k: _Runner(without(model, v), model_file.parent, threads, sliding_window) for k, v in left_out.items()}
    token = np.ones(1, dtype=np.int64)
    for _ in range(_TIMINGS):
        for kind, runner in runners.items():
            began = time.perf_counter()
            runner.logits(token, 0, n_past=_PAST)
            best[kind] = min(best[kind], time.perf_counter() - began)
    share = {k: max(1.0 - best[k] / best[""], 0.0) / len(v) for k, v in left_out.items() if v}
    shares = [share.get(block.kind, 0.0) for block in blocks]
    scale = min(1.0, _MOST_SHARE / max(sum(shares), 1e-9))  # a busy machine can make it more than there is
    return tuple(x * scale for x in shares)


def search(
    scorer: Scorer, value: Value, n_most: int, *, whole: bool = True, progress: Share | None = None
) -> tuple[Candidate, ...]:
    """The whole model, and the best set found of every size from 1 to n_most.

    The first and the last layer stay, as in SWIFT. Ends early where nothing is agreed on any more, and, unless the
    whole way is wanted, where sets have long not become better.
    """
    n = len(scorer.blocks)
    n_most = min(n_most, n - 4)
    path = [Candidate(frozenset(), 1.0, value(1.0, frozenset()))]
    worth = dict.fromkeys(range(2, n - 2), np.inf)  # what was last known of leaving each out
    n_asked, n_all = 0, (n - 4) + max(n_most - 1, 0) * _ASKED_AGAIN
    while len(path) <= n_most and path[-1].agreement > 0.0:
        if not whole and len(path) > _PATIENCE + 1 and max(path[1:], key=lambda c: c.value) in path[:-_PATIENCE]:
            break
        base, best = path[-1].skipped, None
        asked = sorted(worth, key=lambda i: -worth[i])[: None if not base else _ASKED_AGAIN]
        for i in asked:
            skipped = base | {i}
            agreement = scorer.agreement(skipped)
            found = Candidate(skipped, agreement, value(agreement, skipped))
            worth[i] = found.value
            if best is None or found.value > best.value:
                best = found
            n_asked += 1
            if progress:
                progress(min(n_asked / n_all, 1.0))
        if best is None:
            break
        path.append(best)
        del worth[next(iter(best.skipped - base))]
    return tuple(path)
