"""The entries of a Hugging Face folder's config.json, each checked, with what holds where one is absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ModelFileError, UnknownFamilyError, UnsupportedModelError
from .decoder_families import FAMILIES, SILENT

N = TypeVar("N", int, float)

# Models that also see or hear, of which the text part is read, and its family where it does not say it.
_TEXT_PARTS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "mistral3": "mistral"}


class Settings:
    """The entries of config.json that describe the decoder, each checked when it is asked for."""

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        """Raises UnsupportedModelError for a family that is not known, with the way out."""
        self.path = path
        found, kind = dict(settings), settings.get("model_type")
        inner = found.get("text_config")
        if isinstance(kind, str) and kind in _TEXT_PARTS and isinstance(inner, dict):
            names = ("quantization_config", "tie_word_embeddings")
            kept: dict[str, Any] = {name: found[name] for name in names if name in found}
            found = {**kept, "model_type": _TEXT_PARTS[kind], **inner}
            kind = found["model_type"]
        if not isinstance(kind, str):
            raise _unnamed(path)
        self.kind = kind
        for name, family in FAMILIES.items():
            if family.folder is not None and kind in family.folder.silent:
                self.architecture, self.family, self.folder = name, family, family.folder
                break
        else:
            raise _unknown(kind, path, found.get("is_encoder_decoder") is True)
        self.all = found
        self._silent = {**SILENT, **self.folder.silent[self.kind]}

    def get(self, name: str) -> Any:
        """An entry, or what holds where there is none; None where nothing does."""
        return self.all.get(name, self._silent.get(name))

    def says(self, name: str) -> bool:
        return self.all.get(name) is not None

    def need(self, name: str, kind: type[N]) -> N:
        """A positive number. Raises ModelFileError where there is none."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise self.wrong(name, "a positive number")
        if kind is int and value != int(value):
            raise self.wrong(name, "a whole number")
        return kind(value)

    def optional(self, name: str, kind: type[N]) -> N | None:
        """A positive number; None where there is none, or 0."""
        return self.need(name, kind) if self.get(name) else None

    def wrong(self, name: str, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path / 'config.json'}: {name} is {self.get(name)!r:.60}, but must be {what}.")

    def not_built(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.path} holds a {self.kind} that is not built yet: {why}. A .gguf file of it may run on the llamacpp "
            "engine."
        )


def _unnamed(path: Path) -> ModelFileError:
    return ModelFileError(
        f"{path / 'config.json'} does not say which family of models the folder holds (model_type). Fetch or copy it "
        "again."
    )


def _unknown(kind: str, path: Path, reads_first: bool) -> UnknownFamilyError:
    """reads_first: it has an encoder, and no engine here opens such a model that is not exported."""
    known = ", ".join(name for family in FAMILIES.values() if family.folder for name in family.folder.silent)
    way_out = "" if reads_first else " A .gguf file of the model may run on the llamacpp engine."
    return UnknownFamilyError(
        f"{path} is a Hugging Face folder of the family {kind!r}, and families that are opened are {known}.{way_out}",
        kind,
    )
