"""A folder that optimum exported to ONNX: model.onnx and config.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .onnx_folder import DecoderNames, OnnxFolder

GRAPHS = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx")  # by optimum's age, newest first
PLACES = ("", "onnx")  # below the folder


class OptimumFolder(OnnxFolder):
    """graph: where it lies, in the folder or below it."""

    def __init__(self, path: Path, graph: Path) -> None:
        super().__init__(path)
        self._graph = graph

    @property
    def kind(self) -> str:
        return "an ONNX decoder made elsewhere (optimum)"

    @property
    def graph(self) -> Path:
        return self._graph

    @property
    def settings_file(self) -> Path:
        return self._path / "config.json"

    @property
    def names(self) -> DecoderNames:
        return DecoderNames()


def optimum_graph(folder: Path) -> Path | None:
    """The decoder graph of a folder with config.json, as optimum names it, or the only one; None where there is none.

    The hub's ONNX repositories keep graphs in a folder of their own.
    """
    found = optimum_graph_among(
        [path.relative_to(folder).as_posix() for place in PLACES for path in (folder / place).glob("*.onnx")]
    )
    return None if found is None else folder / found


def optimum_graph_among(names: Iterable[str]) -> str | None:
    """The same of the names of a folder's files."""
    graphs = sorted(name for name in names if name.endswith(".onnx"))
    for place in PLACES:
        found = {name.rpartition("/")[2]: name for name in graphs if name.rpartition("/")[0] == place}
        known = [found[name] for name in GRAPHS if name in found]
        if known or len(found) == 1:
            return (known or [*found.values()])[0]
    return None
