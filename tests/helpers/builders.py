"""Bundles that are built by several at once."""

from __future__ import annotations

from pathlib import Path

from pilotfish.runtime.files.bundle import Manifest, Source, describe_files, write_manifest


def fill(folder: Path, content: bytes = b"weights", **changes: object) -> Manifest:
    (folder / "model.onnx").write_bytes(content)
    (folder / "tokenizer.json").write_text("{}")
    facts = {
        "model_id": "tiny",
        "architecture": "llama",
        "context_length": 64,
        "source": Source(name="tiny.gguf", sha256="0" * 64, format="gguf"),
        "files": describe_files(folder),
        "formats": {"onnx": "model.onnx"},
        "tokenizer": "tokenizer.json",
        "eos_ids": (2, 7),
        "report": {"max_error": 1e-6},
        **changes,
    }
    manifest = Manifest.model_validate(facts)
    write_manifest(folder, manifest)
    return manifest
