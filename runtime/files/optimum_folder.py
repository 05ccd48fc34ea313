"""A folder that optimum exported to ONNX: model.onnx and config.json."""

from __future__ import annotations

from pathlib import Path

from .onnx_folder import DecoderNames, OnnxFolder

GRAPHS = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx")  # by optimum's age, newest first


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
    for place in (folder, folder / "onnx"):
        found = sorted(path for path in place.glob("*.onnx") if path.is_file())
        named = {path.name: path for path in found}
        known = [named[name] for name in GRAPHS if name in named]
        if known or len(found) == 1:
            return (known or found)[0]
    return None
