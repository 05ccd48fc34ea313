"""Hugging Face folders made without torch: the same random model as a .gguf file of a family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from expert_files import fused, of_experts
from family_files import _SIZES, MADE

from pilotfish.runtime.files.decoder_families import FAMILIES
from pilotfish.runtime.files.folder_experts import expert_names
from pilotfish.runtime.files.folder_names import TensorNames
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

_KINDS = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8"}


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], *, bf16: bool = False) -> Path:
    """A file of these tensors; bf16: floats by their upper halves."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, at = [], 0
    for name, array in tensors.items():
        kind = _KINDS[array.dtype.name]
        data = array.tobytes()
        if bf16 and kind == "F32":
            kind, data = "BF16", (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    return path


def floats_of(name: str, gguf: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a .gguf file of a family (MADE), as transformers has them."""
    made, file = MADE[name], read_gguf(gguf)
    family, metadata = FAMILIES[made.architecture], file.metadata
    more = expert_names(made.model_type) if "expert_count" in made.metadata else {}
    names = TensorNames(packed=family.packed, norms_after=family.norms_after, mlp_norm=family.mlp_norm, more=more)
    heads = {key: metadata[f"{made.architecture}.attention.head_count{end}"] for key, end in (("q", ""), ("k", "_kv"))}
    found = {}
    for gguf_name, tensor in file.tensors.items():
        own, values = names.transformers(gguf_name), tensor.values()
        if own is None:
            continue  # what the settings say
        stem = gguf_name.split(".")[-2]
        if made.pairs and stem in ("attn_q", "attn_k"):
            n = heads[stem[-1]]
            values = values.reshape(n, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if "*" in own or own.endswith(("sinks.weight", "shared_expert_gate.weight")):
            found |= of_experts(made.model_type, own, values)
            continue
        found[own] = np.ascontiguousarray(values - np.float32(made.norm_offset) if "norm" in own else values)
    return fused(made.model_type, found)


def settings_of(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a family. changes: None takes an entry out."""
    made = MADE[name]
    usual: dict[str, Any] = {"model_type": made.model_type, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    usual |= {key: value for key, value in _SIZES.items() if not key.endswith("_token_id")}  # the tokenizer has its own
    found = {**usual, **made.settings, **changes}
    return {key: value for key, value in found.items() if value is not None or key in made.settings}


def folder_of(name: str, gguf: Path, folder: Path, *, bf16: bool = False, **changes: Any) -> Path:
    """A folder with the model of a .gguf file of a family. changes: of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings_of(name, **changes)))
    write_safetensors(folder / "model.safetensors", floats_of(name, gguf), bf16=bf16)
    return save_tokenizer(folder, gguf)


def save_tokenizer(folder: Path, gguf: Path) -> Path:
    """Put the tokenizer and the chat template of a .gguf file into a folder."""
    metadata = read_gguf(gguf).metadata
    tokenizer = tokenizer_from_gguf(metadata)
    tokenizer.save(folder / "tokenizer.json")
    said = {
        "chat_template": metadata["tokenizer.chat_template"],
        "eos_token": tokenizer.token(tokenizer.eos_id or 0),
        "add_bos_token": tokenizer.add_bos,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder
