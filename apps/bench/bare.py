"""Engines driven bare: what anybody could run instead of us, by each engine's own API."""

from __future__ import annotations

from typing import Protocol

from ...runtime.files.model_file import ModelFile
from .bare_genai import OpenVinoGenAi
from .bare_llamacpp import LlamaCpp
from .bare_onnx import OnnxRuntime
from .curve import engines_of


class Peer(Protocol):
    """An engine that decodes without us."""

    def decode(self, prompt: list[int], n_tokens: int) -> tuple[tuple[int, ...], float]:
        """Greedy tokens and the seconds that they took, the prompt not counted."""
        ...

    def close(self) -> None: ...


def open_peer(engine: str, model: ModelFile, threads: int, max_context: int) -> Peer | None:
    """The engine's own way of decoding this model; None where that is not installed, or the engine has none."""
    if engine == "onnx":
        return OnnxRuntime.open(model, threads, max_context)
    if engine == "openvino":
        return OpenVinoGenAi.open(model, threads, max_context)
    return LlamaCpp.open(model, threads, max_context) if engine == "llamacpp" else None


def open_peers(model: ModelFile, threads: int, max_context: int) -> dict[str, Peer]:
    """Every installed engine that opens the model, bare."""
    names = [backend.name for backend in engines_of(model, "all")]
    opened = {name: open_peer(name, model, threads, max_context) for name in names}
    return {name: peer for name, peer in opened.items() if peer is not None}
