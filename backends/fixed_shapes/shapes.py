"""The shapes a device compiles, and what is known about a graph of fixed shapes before one of them is run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ...runtime.errors import ModelFileError, OptionError
from ...runtime.files.bundle import Bundle
from ...runtime.interfaces import ModelInfo

FORMAT = "onnx-static"
_WINDOW_STEP = 64  # windows are multiples of it, so that kernels add up their entries in the same order
_EXPECTED = {"input_ids", "position_ids", "logit_rows", "mask", "place", "past_key_0", "logits", "hidden", "new_key_0"}


@dataclass(frozen=True, slots=True)
class Ladder:
    """The shapes a device compiles.

    widths: ascending rows of a step with logits; chunk: rows of a step without any, for prompts; windows: ascending
    columns, of which a session uses those its max_context needs, and one that just holds it.
    """

    widths: tuple[int, ...] = (1, 4, 8, 16)
    chunk: int = 64
    windows: tuple[int, ...] = (256, 1024, 4096, 16384)

    def __post_init__(self) -> None:
        for name, rungs in (("widths", self.widths), ("windows", self.windows)):
            if not rungs or rungs[0] < 1 or any(a >= b for a, b in itertools.pairwise(rungs)):
                raise OptionError(f"{name} must ascend from 1 or more, but are {rungs}.")
        if self.chunk <= self.widths[-1]:
            raise OptionError(
                f"the prompt chunk is {self.chunk}, but must be wider than the widest step, {self.widths[-1]}."
            )
        if any(w % _WINDOW_STEP for w in self.windows):
            raise OptionError(f"windows must be multiples of {_WINDOW_STEP}, but are {self.windows}.")

    def fit(self, n_rows: int) -> int:
        """The narrowest width that holds so many rows."""
        return next(w for w in self.widths if w >= n_rows)

    def steps(self, n_rows: int, n_logits: int) -> list[tuple[int, int, int]]:
        """(first row, end, width run) of the steps that make up one of any width, logits wanted of its last rows."""
        made, start, silent = [], 0, n_rows - n_logits
        while silent - start > self.widths[-1]:
            end = min(start + self.chunk, silent)
            made.append((start, end, self.chunk))
            start = end
        while start < n_rows:
            end = min(start + self.widths[-1], n_rows)
            alone = end - start == 1 and made and self.widths[-1] > 1  # one row can be a row class of its own
            made.append((start, end, self.fit(2 if alone else end - start)))
            start = end
        return made

    def windows_for(self, max_context: int) -> tuple[int, ...]:
        """Windows of a session that holds so many entries."""
        largest = -(-max_context // _WINDOW_STEP) * _WINDOW_STEP
        return (*(w for w in self.windows if w < largest), largest)


_DEFAULT = Ladder()


class ShapeOptions(BaseModel):
    """Settings of a device that runs fixed shapes: those of its Ladder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[int, ...] = _DEFAULT.widths
    chunk: int = _DEFAULT.chunk
    windows: tuple[int, ...] = _DEFAULT.windows

    @property
    def ladder(self) -> Ladder:
        return Ladder(self.widths, self.chunk, self.windows)


Options = TypeVar("Options", bound=ShapeOptions)


def checked_options(kind: type[Options], device: str, options: Mapping[str, object]) -> Options:
    """The settings given. Raises OptionError naming the first that is wrong, and those there are."""
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(f"{n}={field.default!r}" for n, field in kind.model_fields.items())
        name = ".".join(str(part) for part in first["loc"])
        raise OptionError(f"{device}: {name}: {first['msg']}. Its options are {known}.") from error


def static_info(
    bundle: Bundle,
    shapes: Mapping[str, Sequence[Any]],
    ladder: Ladder,
    *,
    engine: str,
    version: str,
    device: str,
    threads: int,
    settings: str,
) -> ModelInfo:
    """What is known about a static graph.

    shapes: of its inputs and outputs by name. Raises ModelFileError where one is missing.
    """
    missing = _EXPECTED - set(shapes)
    if missing:
        raise ModelFileError(
            f"{bundle} holds no static graph of Pilotfish: it has no {', '.join(sorted(missing))}. "
            "Build the bundle again from its source."
        )
    manifest = bundle.manifest
    digests = (fact.sha256 for _, fact in sorted(manifest.files.items()))
    _, kv_heads, _, head_dim = shapes["past_key_0"]
    return ModelInfo(
        architecture=manifest.architecture,
        vocab_size=int(shapes["logits"][1]),
        context_length=manifest.context_length,
        n_layers=sum(name.startswith("past_key_") for name in shapes),
        n_heads=int(manifest.recipe_of(FORMAT).get("n_heads", kv_heads)),
        kv_heads=int(kv_heads),
        head_dim=int(head_dim),
        hidden_size=int(shapes["hidden"][1]),
        engine=engine,
        engine_version=version,
        device=device,
        threads=threads,
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
        settings="-".join([settings, *map(str, ladder.widths)]),
        widths=ladder.widths,
    )


def static_bundle(bundle: Bundle) -> str:
    """The graph's file in a bundle. Raises ModelFileError where the bundle has none."""
    if FORMAT not in bundle.manifest.formats:
        raise ModelFileError(
            f"{bundle} holds no graph of fixed shapes; it holds {', '.join(bundle.manifest.formats)}. "
            "Open the .gguf file it was made from, which is then imported in that form."
        )
    return bundle.manifest.formats[FORMAT]
