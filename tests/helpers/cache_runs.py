"""Answers over a compressed cache, with drafts and without: models, settings and runs that several tests share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from model_files import imported
from small_models import need

from pilotfish.backends import get
from pilotfish.runtime.cache.compression import entries_for
from pilotfish.runtime.cache.policies import CachePolicy, policy_by_name
from pilotfish.runtime.cache.policies.by_name import POLICIES, SCORERS, WRAPPERS
from pilotfish.runtime.cache.sequence import CachedSequence
from pilotfish.runtime.decoding.loop import Limits, generate
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Budget, Draft, Proposer, Round, Tokens, Weights
from pilotfish.runtime.profiling.cost_curve import CostCurve
from pilotfish.runtime.profiling.row_classes import RowRule
from pilotfish.runtime.sampling.sampling import Sampling
from pilotfish.runtime.speculation.controller import Drafting
from pilotfish.runtime.speculation.draft_length import Fixed
from pilotfish.testing.tiny_models import Sizes, tiny_gguf
from pilotfish.testing.toy import ALL, SEEN, ToyWeights

SMALL = {"budget": 24, "every": 8, "sinks": 2, "window": 6}


N_PROMPT, N_NEW = 50, 60  # the prompt alone fills the cache three times


SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=1.0, top_k=12)}


WIDTHS = RowRule(tuple(range(2, 34)))


MORE = {  # what names need besides
    "lagkv": "lag=5",
    "expected": "observed=6",
    "kvzip": "chunk=5",
    "chunk-": "size=4",
    "crush-": "size=4",
    "threshold-": "threshold=-1",
}


def small(name: str, engine: str) -> CachePolicy:
    """A policy with a small cache; the toy has one head."""
    settings = [f"{setting}={value}" for setting, value in SMALL.items()]
    settings += [given for part, given in MORE.items() if part in name]
    if engine == "toy" and name not in POLICIES.keys() - SCORERS.keys():
        settings.append("per_head=false")
    return policy_by_name(f"{name}:{','.join(settings)}")


def wrapped() -> list[str]:
    """Every registered wrapper before every registered scorer that it takes."""
    names = []
    for prefix in WRAPPERS:
        fits = [f"{prefix}{scorer}" for scorer in SCORERS if can_be_made(f"{prefix}{scorer}")]
        assert fits, f"no scorer can be wrapped by {prefix}: what settings does it need?"
        names += fits
    return names


def can_be_made(name: str) -> bool:
    try:
        small(name, "reference")
    except OptionError:
        return False
    return True


ALL_WRAPPED = wrapped()


FIRST = [next(name for name in ALL_WRAPPED if name.startswith(prefix)) for prefix in WRAPPERS]


WRAPPED = list(dict.fromkeys([*FIRST, "chunk-keydiff", "chunk-snapkv", "critical-snapkv", "chunk-critical-tova"]))


class TurningToy(ToyWeights):
    """Its queries are made as those of a first layer are: of their own token, turned by its position."""

    def vectors(self, paths: Any) -> Any:
        plain = super().vectors([(replace(path[-1], position=0),) for path in paths])
        angles = np.outer([path[-1].position for path in paths], [0.9, 0.1])
        turned = (plain[:, :2] + 1j * plain[:, 2:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=1).astype(np.float32)


@dataclass
class Knows:
    """Drafts what plain decoding said, with a mistake every so often; as a tree, beside a branch that is wrong."""

    said: Tokens
    tree: bool
    vocab_size: int
    name: str = "knows"

    def propose(self, context: Tokens, budget: Budget) -> Draft:
        right = self.said[len(context) :][: min(5 + len(context) % 7, budget.max_tokens)].copy()
        right[2::4] = (right[2::4] + (len(context) % 3 == 0)) % self.vocab_size
        if not self.tree or len(right) < 2:
            return Draft(right, expected=np.full(len(right), 0.9))
        room = budget.max_tokens - len(right)
        wrong = (right[: min(2, room)] + 1) % self.vocab_size
        tokens = np.concatenate([wrong, right])
        parents = np.concatenate([np.arange(len(wrong)), [0], len(wrong) + np.arange(1, len(right))])
        return Draft(tokens, parents, expected=np.full(len(tokens), 0.9))


@dataclass
class Run:
    """One answer and the cache that it left."""

    tokens: Tokens
    rounds: list[Round]
    sequence: CachedSequence
    most: int = 0
    sizes: list[int] = field(default_factory=list)


def run(
    weights: Weights,
    policy: CachePolicy | None,
    prompt: Tokens,
    *,
    proposers: tuple[Proposer, ...] = (),
    sampling: Sampling = SAMPLINGS["greedy"],
    n_new: int = N_NEW,
    rows: RowRule = WIDTHS,
    sequence: CachedSequence | None = None,
) -> Run:
    if sequence is None:
        entries = None if policy is None else entries_for(policy, rows, weights.info)
        sequence = CachedSequence(weights.session(entries), rows, policy)
    flat = CostCurve(np.array([1, 33]), np.array([1.0, 1.0]))
    rounds = generate(
        sequence,
        prompt,
        sampling=sampling,
        drafting=Drafting(Fixed(8), flat, rows),
        proposers=proposers,
        limits=Limits(n_new),
        rng=np.random.default_rng(3),
    )
    made = Run(prompt, [], sequence)
    for done in rounds:
        made.rounds.append(done)
        made.tokens = np.concatenate([made.tokens, np.array(done.tokens, dtype=np.int64)])
        made.sizes.append(len(sequence.session.positions))
    made.most = max(made.sizes)
    return made


def engines_over_tiny_weights(
    tmp_path_factory: pytest.TempPathFactory, sizes: Sizes, toy: Callable[[], Any], threads: int = 1
) -> Iterator[Callable[[str], Weights]]:
    """Small weights on an engine, opened once on each; "toy" is a new one every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE", str(tmp_path_factory.mktemp("cache")))
        path = tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", quant="Q8_0", sizes=sizes, seed=10)
        made: dict[str, Weights] = {}

        def open_engine(engine: str) -> Weights:
            if engine == "toy":
                return toy()  # type: ignore[no-any-return]
            need(engine)
            if engine not in made:
                location = imported(path, activations="f32") if engine == "onnx" else path
                made[engine] = get(engine).open(open_model(location), device=None, threads=threads, kv_dtype=None)
            return made[engine]

        yield open_engine
        for weights in made.values():
            weights.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Weights]]:
    """Small weights on an engine."""
    toy = functools.partial(TurningToy, vocab_size=17, context_length=512, abilities=ALL | SEEN)
    yield from engines_over_tiny_weights(tmp_path_factory, Sizes(layers=3, context=512), toy, threads=2)


def prompt_for(weights: Weights, n: int = N_PROMPT, seed: int = 1) -> Tokens:
    return np.random.default_rng(seed).integers(0, weights.info.vocab_size - 3, n)


PROSE = (
    "The old harbour town had three bakeries, two of which were owned by the same family, and one library, which was "
    "open on Tuesdays. In winter the fishermen met there and read the newspapers aloud to one another, because the "
    "light was good and the stove was warm. When the ferry stopped running, the mayor promised a bridge. "
)


# What looks at a cache that is there already: it neither watches every token nor runs rows of its own.
LATER = [name for name, kind in POLICIES.items() if kind().rows is not None and not kind().spare]
