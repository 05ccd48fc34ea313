"""Pilotfish as one of the contestants: plain, with its defaults, with a draft model, and without the exact promise."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from .... import __version__
from ....runtime.errors import AbilityError
from ....runtime.interfaces import as_tokens
from ....runtime.model.model import Model
from ....runtime.sampling.sampling import Sampling
from ..unremembering import Unremembering, opened
from .contract import Answer, Question, Setup


class Pilotfish:
    """A model that forgets what earlier answers said. The ceiling is what the same steps take by the measured T(n)."""

    def __init__(self, model: Model, fresh: Unremembering, setup: Setup) -> None:
        self._model, self._fresh = model, fresh
        self._temperature, self._seed = setup.temperature, setup.seed
        self.version = f"{__version__}, {model.info.engine} {model.info.engine_version}"

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """Whatever load() takes."""
        return True

    @classmethod
    def open(cls, setup: Setup) -> Pilotfish:
        """Raises what load() raises."""
        model, fresh = opened(
            setup.path,
            engine=setup.engine,
            draft=setup.draft if setup.variant == "draft" else None,
            speculate=setup.variant != "plain",
            exact=setup.variant != "inexact",
            threads=setup.threads,
            max_context=setup.room,
        )
        return cls(model, fresh, setup)

    def answer(self, question: Question) -> Answer:
        """The tokens of the first round come with the prompt's time. Nothing is left of the prompt before."""
        self._fresh.forget()
        self._forget_prompt()
        began = time.perf_counter()
        found = self._model.generate(
            question.text,
            max_new_tokens=question.n_tokens,
            sampling=Sampling(temperature=self._temperature),
            seed=self._seed,
        )
        seconds, rounds = time.perf_counter() - began, found.rounds
        first_s = seconds if found.stats.ttft_s is None else found.stats.ttft_s
        n_first = len(rounds[0].tokens) if rounds else 0
        curve = self._model.calibration.curve
        ceiling_s = sum(curve.seconds(r.width) for r in rounds[1:])
        return Answer(found.token_ids, seconds, first_s, n_first, len(rounds), ceiling_s)

    def _forget_prompt(self) -> None:
        """Have the next prompt read from its first token on, as the others do."""
        with contextlib.suppress(AbilityError):  # of an engine that saves nothing; it has forgotten by then
            self._model.restore_cache(self._model.save_cache(as_tokens([])))


ENGINE = Pilotfish
