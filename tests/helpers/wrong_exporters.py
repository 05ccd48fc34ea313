"""Exporters that go wrong: one without a sign of it, one halfway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilotfish.exporters.gguf.format import GgufFormat
from pilotfish.exporters.torch_to_onnx.format import OnnxFormat


class Spoiled(OnnxFormat):
    """An exporter with a fault that no file shows: rotation by another base than the model was trained with."""

    def write(self, source: Any, spec: Any, model: Any, folder: Path, progress: Any) -> dict[str, str]:
        rotary = model.model.rotary_emb
        right = rotary.inv_freq.clone()
        rotary.inv_freq.mul_(0.8)
        try:
            return super().write(source, spec, model, folder, progress)
        finally:
            rotary.inv_freq.copy_(right)


class Broken(GgufFormat):
    """An exporter that fails when half of its work is done."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, source: Any, spec: Any, model: Any, folder: Path, progress: Any) -> dict[str, str]:
        (folder / "half").write_bytes(b"half")
        raise self._error
