"""`pilotfish inspect`: what a model file holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..loading import resolve
from ..runtime.bundle import open_bundle
from ..runtime.gguf_file import read_gguf

_LONG = 60  # characters of a value that are shown


def inspect_model(model: str, as_json: bool) -> None:
    """Print the facts of a .gguf file or a bundle."""
    path = resolve(model)
    found = _bundle_facts(path) if path.is_dir() else _gguf_facts(path)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    out = Console(highlight=False, markup=False)
    table = Table("what", "value")
    for key, value in found.items():
        text = str(value)
        table.add_row(key, text if len(text) <= _LONG else f"{text[:_LONG]}...")
    out.print(table)


def _bundle_facts(folder: Path) -> dict[str, object]:
    return {"path": str(folder), **open_bundle(folder).manifest.model_dump(mode="json")}


def _gguf_facts(path: Path) -> dict[str, object]:
    file = read_gguf(path)
    types = Counter(t.type_name for t in file.tensors.values())
    plain = {k: v if not isinstance(v, (list, np.ndarray)) else f"{len(v)} values" for k, v in file.metadata.items()}
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(file.tensors),
        "tensor_types": dict(types.most_common()),
        **plain,
    }
