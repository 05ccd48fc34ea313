"""GGUF files of Hugging Face folders, written and quantized."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pilotfish.exporters.gguf.quantize import quantize_gguf
from pilotfish.exporters.gguf.writer import write_gguf
from pilotfish.exporters.open_source import open_source


def gguf_writer(folders: Mapping[str, Path], out: Path) -> Callable[[str, str], Path]:
    """Gives the model of a folder as a GGUF file whose weights are stored in a given way; each is made once."""

    @functools.cache
    def write(name: str, stored: Any) -> Path:
        path = out / f"{name}-{stored}.gguf"
        if stored in ("f32", "f16"):
            source = open_source(folders[name])
            write_gguf(source, source.torch_model(), path, stored=stored)
        else:
            quantize_gguf(write(name, "f32"), path, stored, threads=2)
        return path

    return write
