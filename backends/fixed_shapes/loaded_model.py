"""A graph of fixed shapes (docs/npu.md): what runs it, and what sessions over it share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from ...runtime.interfaces import Floats, ModelInfo
from ..common.weights import still_open
from .shapes import Ladder

Inputs: TypeAlias = Mapping[str, npt.NDArray[Any]]


class Runner(Protocol):
    """Runs the static graph in one shape at a time; compiles a shape when it is first run."""

    def run(self, width: int, window: int, inputs: Inputs) -> Mapping[str, Floats]:
        """Every output of the graph by name, for `width` new tokens, `window` columns and len(inputs["logit_rows"])
        rows of logits. The arrays may be written over by the next run. Raises EngineError."""
        ...

    def close(self) -> None: ...


class StaticModel:
    """A runner and what is known about its graph; sessions share both."""

    def __init__(self, runner: Runner, info: ModelInfo, ladder: Ladder) -> None:
        self.info, self.ladder = info, ladder
        self._runner: Runner | None = runner

    @property
    def runner(self) -> Runner:
        """What runs the steps. Raises EngineError after close()."""
        return still_open(self._runner)

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        still_open(self._runner)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None
