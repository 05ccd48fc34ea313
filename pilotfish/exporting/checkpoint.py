"""Which formats of an export are finished, written down where it is built: a killed export is gone on with there."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..exporters.export_spec import ExportSpec
from ..exporters.formats import FORMATS
from ..runtime.files.bundle import read_json, write_json_atomically
from .manifest import PLAN, Made

if TYPE_CHECKING:
    from ..exporters.sources.model_source import ModelSource

_MAKERS = (
    "pilotfish",
    "torch",
    "transformers",
    "onnx",
    "openvino",
    "optimum-intel",
    "nncf",
    "gguf",
    "llama-cpp-python",
)
_PACK_MAKERS = ("onnxruntime", "onnxruntime-qnn", "executorch", "torchao", "coremltools")


class Checkpoint:
    """Finished formats in a folder that is being built, those of a killed process among them."""

    def __init__(self, folder: Path, source: ModelSource, spec: ExportSpec) -> None:
        self._folder, self._source, self._spec = folder, source, spec
        self._made = _finished(folder, source)

    def finished(self, names: Iterable[str]) -> dict[str, Made]:
        """Those of these formats that are finished, from the same source, options and package versions."""
        return {name: self._made[name] for name in names if self._is_finished(name)}

    def keep(self, name: str, made: Made) -> None:
        """Write down that a format is finished."""
        recipe = {**made.recipe, "fingerprint": self._fingerprint(name)}
        self._made[name] = Made(made.file, recipe, made.report)
        self.remember()

    def drop(self, name: str) -> None:
        """Forget one that turned out wrong."""
        self._made.pop(name, None)

    def remember(self) -> None:
        """Write down what is finished, and of which source."""
        finished = {name: asdict(made) for name, made in self._made.items()}
        write_json_atomically(self._folder / PLAN, {"source": self._source.sha256, "finished": finished})

    def forget(self) -> None:
        """Remove what only an interrupted export needs."""
        (self._folder / PLAN).unlink()

    def _is_finished(self, name: str) -> bool:
        return name in self._made and self._made[name].recipe.get("fingerprint") == self._fingerprint(name)

    def _fingerprint(self, name: str) -> str:
        """Of everything that decides what a format becomes."""
        spec = asdict(self._spec) | {"samples": [tokens.tolist() for tokens in self._spec.samples]}
        makers = _MAKERS if name in FORMATS else (*_MAKERS, *_PACK_MAKERS)
        facts = [self._source.sha256, name, spec, [_version(package) for package in makers]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_of(folder: Path, source: ModelSource) -> bool:
    """Whether a killed process was exporting this source there."""
    plan = read_json(folder / PLAN)
    return isinstance(plan, dict) and plan.get("source") == source.sha256


def _finished(folder: Path, source: ModelSource) -> dict[str, Made]:
    plan = read_json(folder / PLAN)
    if not is_of(folder, source) or not isinstance(plan, dict) or not isinstance(plan.get("finished"), dict):
        return {}
    try:
        return {str(name): Made(**made) for name, made in plan["finished"].items()}
    except TypeError:  # written by another version
        return {}


@functools.cache
def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
