"""Models on disk, opened as the product opens them."""

from __future__ import annotations

from pathlib import Path

from pilotfish.exporters.gguf.import_gguf import Activations, Form, import_gguf
from pilotfish.runtime.files.gguf_model import GgufModel
from pilotfish.runtime.progress import Progress


def imported(
    path: Path,
    *,
    activations: Activations = "int8",
    form: Form = "onnx",
    progress: Progress | None = None,
) -> Path:
    """The bundle folder that a .gguf file is imported into."""
    return import_gguf(GgufModel(path), activations=activations, form=form, progress=progress).path
