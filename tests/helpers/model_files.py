"""Models on disk, opened as the product opens them."""

from __future__ import annotations

from pathlib import Path

from pilotfish.exporters.onnx.import_model import Activations, Form, import_model
from pilotfish.runtime.files.open_model import decoder_of, open_model
from pilotfish.runtime.progress import Progress


def imported(
    path: Path,
    *,
    activations: Activations = "int8",
    form: Form = "onnx",
    progress: Progress | None = None,
) -> Path:
    """The bundle folder that a .gguf file or a folder of safetensors is imported into."""
    return import_model(decoder_of(open_model(path)), activations=activations, form=form, progress=progress).path
