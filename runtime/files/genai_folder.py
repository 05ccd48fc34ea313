"""A folder for onnxruntime-genai: genai_config.json, and the decoder graph that it names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, UnsupportedModelError
from .folder_files import json_object
from .onnx_folder import DecoderNames, OnnxFolder

GENAI_CONFIG = "genai_config.json"
_OTHER_PARTS = ("encoder", "embedding", "vision", "speech", "encoder_decoder_init")
_KEPT = ("repetition_penalty", "no_repeat_ngram_size")  # of what it says about searching: what changes logits
_SIZES = {
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "hidden_size": "hidden_size",
}  # of the decoder: as config.json names them
_NAMES = {
    "inputs": {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key",
        "past_value_names": "past_value",
    },
    "outputs": {"logits": "logits", "present_key_names": "present_key", "present_value_names": "present_value"},
}


class GenaiFolder(OnnxFolder):
    """One decoder graph for the CPU. Raises UnsupportedModelError for pipelines of several and for other devices."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        model = _part(json_object(self.settings_file), "model", self.settings_file)
        self._model, self._decoder = model, _part(model, "decoder", self.settings_file)
        self._refuse_parts()
        self._refuse_devices()

    @property
    def kind(self) -> str:
        return "an ONNX decoder for onnxruntime-genai"

    @property
    def settings_file(self) -> Path:
        return self._path / GENAI_CONFIG

    @property
    def graph(self) -> Path:
        name = self._decoder.get("filename")
        path = self._path / name if isinstance(name, str) and name else self._path
        if not path.is_file() or not path.resolve().is_relative_to(self._path.resolve()):
            raise ModelFileError(f"{self.settings_file} names the graph {name!r}, which is not there. Fetch it, too.")
        return path

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        model, window = self._model, self._decoder.get("sliding_window")
        found = {
            "model_type": model.get("type"),
            "max_position_embeddings": model.get("context_length"),
            "vocab_size": model.get("vocab_size"),
            "eos_token_id": model.get("eos_token_id"),
            "sliding_window": window.get("window_size") if isinstance(window, dict) else None,
            **{ours: self._decoder.get(theirs) for theirs, ours in _SIZES.items()},
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def names(self) -> DecoderNames:
        found: dict[str, str] = {}
        for part, known in _NAMES.items():
            given = _part(self._decoder, part, self.settings_file)
            found |= {ours: given[theirs] for theirs, ours in known.items() if isinstance(given.get(theirs), str)}
        return DecoderNames(**found)

    def said_of_generating(self) -> Mapping[str, Any]:
        search = json_object(self.settings_file).get("search")
        return {name: search[name] for name in _KEPT if name in search} if isinstance(search, dict) else {}

    def _refuse_parts(self) -> None:
        parts = [name for name in _OTHER_PARTS if name in self._model]
        if "pipeline" in self._decoder:
            parts.append("a pipeline of decoder graphs")
        if parts:
            raise UnsupportedModelError(
                f"{self._path} is made of several graphs ({', '.join(parts)}), and the onnx engine runs a decoder that "
                "is one. Build that one of the model's weights: python -m onnxruntime_genai.models.builder -e cpu"
            )

    def _refuse_devices(self) -> None:
        options = self._decoder.get("session_options")
        given = options.get("provider_options") if isinstance(options, dict) else None
        names = [name for entry in given or () if isinstance(entry, dict) for name in entry if name.lower() != "cpu"]
        if names:
            raise UnsupportedModelError(
                f"{self._path} is made for {', '.join(names)}, and the onnx engine runs such folders on the cpu. Take "
                "the model's folder for the cpu, or build one: python -m onnxruntime_genai.models.builder -e cpu"
            )


def _part(settings: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    found = settings.get(name)
    if not isinstance(found, dict):
        raise ModelFileError(f"{file} has no part {name!r}. Fetch or copy it again.")
    return found
