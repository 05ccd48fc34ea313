"""Tiny random GGUF files of any architecture that llama.cpp knows: it says itself which tensors one has.

The sizes are one table for all, as in llama.cpp's own test of its architectures; a few differ. A process of its own
reads them, makes the tensors and tells their names and shapes, so a mistake in the table ends no test run.

Run as a process: for each line with the path of a file without tensors prints one JSON object, shapes by name.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pilotfish.exporters.gguf.entries import add_entry
from pilotfish.exporters.gguf.llama_tokenize import process_environment
from pilotfish.testing.tiny_models import CHATML, add_tokenizer

Value = str | bool | int | float | list[int] | list[str] | list[float]

HIDDEN, HEADS, LAYERS, CONTEXT = 64, 2, 2, 1024
_HEAD = HIDDEN // HEADS
_SIZES: dict[str, Value] = {
    "context_length": CONTEXT,
    "embedding_length": HIDDEN,
    "block_count": LAYERS,
    "feed_forward_length": 96,
    "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
_ATTENDING = [HEADS, 0]  # heads by layer where the second one keeps a state
_EXPERTS: dict[str, Value] = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 64,
}
_MAMBA: dict[str, Value] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
}
_DELTA: dict[str, Value] = {**_MAMBA, "full_attention_interval": 2}
_LATENT: dict[str, Value] = {  # keys and values of all heads from a few numbers
    **{"attention.q_lora_rank": 32, "attention.kv_lora_rank": 32},
    **{"attention.key_length": 48, "attention.value_length": 32},
    **{"attention.key_length_mla": 32, "attention.value_length_mla": 16, "rope.dimension_count": 16},
    **{"attention.head_count_kv": 1, "expert_shared_count": 1, "expert_weights_scale": 1.0},
}
_RANKS = ("decay", "iclr", "value_residual_mix", "gate")
_WINDOW: dict[str, Value] = {"attention.sliding_window": 32}


@dataclass(frozen=True)
class Family:
    """An architecture: what its sizes differ in (None leaves one out)."""

    architecture: str
    sizes: Mapping[str, Value | None] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "gemma2": Family("gemma2", {**_WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma4": Family(
        "gemma4",
        {
            **_WINDOW,
            **{"block_count": 5, "attention.sliding_window_pattern": [True, True, True, True, False]},
            **{"attention.key_length": 64, "attention.value_length": 64, "attention.key_length_swa": 32},
            **{"attention.value_length_swa": 32, "embedding_length_per_layer_input": 16},
            **{"attention.shared_kv_layers": 0, "rope.freq_base_swa": 10000.0, "final_logit_softcapping": 30.0},
            **{"rope.dimension_count": 64, "rope.dimension_count_swa": 32},
        },
    ),
    "gemma3": Family("gemma3", _WINDOW),
    "phi3": Family("phi3", {"attention.sliding_window": 0}),
    "qwen3": Family("qwen3", {"attention.head_count_kv": 1}),
    "qwen3moe": Family("qwen3moe", _EXPERTS),
    "mixtral": Family("llama", {"expert_count": 4, "expert_used_count": 2}),
    "olmo2": Family("olmo2"),
    "granite": Family("granite", {"logit_scale": 4.0, "residual_scale": 0.5, "embedding_scale": 6.0}),
    "gpt-oss": Family("gpt-oss", {**_WINDOW, **_EXPERTS, "attention.key_length": 32, "attention.value_length": 32}),
    "mamba": Family("mamba", _MAMBA),
    "mamba2": Family("mamba2", _MAMBA),
    "rwkv7": Family("rwkv7", {"wkv.head_size": HIDDEN, **{f"attention.{name}_lora_rank": 16 for name in _RANKS}}),
    "lfm2": Family("lfm2", {"attention.head_count_kv": _ATTENDING, "shortconv.l_cache": 3}),
    "granitehybrid": Family("granitehybrid", {**_MAMBA, "attention.head_count_kv": _ATTENDING}),
    "falcon-h1": Family("falcon-h1", _MAMBA),
    "jamba": Family("jamba", {**_MAMBA, "attention.head_count_kv": _ATTENDING}),
    "qwen35": Family("qwen35", {**_DELTA, "rope.dimension_sections": [4, 4, 4, 4]}),
    "qwen3next": Family("qwen3next", {**_DELTA, **_EXPERTS, "expert_shared_feed_forward_length": 64}),
    "deepseek2": Family("deepseek2", {**_LATENT, **_EXPERTS, "leading_dense_block_count": 1}),
    "smollm3": Family("smollm3"),
    "falcon": Family("falcon"),
    "bloom": Family("bloom"),
    "command-r": Family("command-r", {"logit_scale": 0.5}),
    "gemma": Family("gemma", {"attention.head_count_kv": 1}),
    "mistral3": Family("mistral3", {"attention.temperature_scale": 0.1, "rope.scaling.original_context_length": 64}),
}
STATES = {  # how many entries of a step can be taken back where a family keeps a state
    **dict.fromkeys(("mamba", "mamba2", "rwkv7", "granitehybrid", "falcon-h1", "jamba", "qwen3next"), 0),
    **dict.fromkeys(("lfm2", "qwen35"), 4),
}


def write_foreign(folder: Path, names: list[str]) -> dict[str, Path]:
    """The paths of random models of these families, written into a folder."""
    asked = {name: _write(folder / f"{name}.head", FAMILIES[name], {}) for name in names}
    done = subprocess.run(
        [sys.executable, __file__],
        input="\n".join(map(str, asked.values())),
        capture_output=True,
        text=True,
        check=False,
        env=process_environment(),
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(names), done.stderr[-2000:]
    return {
        name: _write(folder / f"{name}.gguf", FAMILIES[name], json.loads(line))
        for name, line in zip(names, lines, strict=True)
    }


def _write(path: Path, family: Family, shapes: Mapping[str, list[int]]) -> Path:
    writer = gguf.GGUFWriter(path, family.architecture)
    add_tokenizer(writer, CHATML)
    for key, value in {**_SIZES, **family.sizes}.items():
        if value is not None:
            add_entry(writer, f"{family.architecture}.{key}", value)
    rng = np.random.default_rng(0)
    for name, shape in sorted(shapes.items()):
        writer.add_tensor(name, _values(name, shape, rng))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _values(name: str, shape: list[int], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    if name.endswith("ssm_a"):
        return -rng.uniform(0.1, 1.0, shape).astype(np.float32)
    if len(shape) == 1 and name.endswith(("norm.weight", "rope_freqs.weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if "time_mix" in name:  # a state that decays
        return rng.normal(0.0, 0.2 / np.sqrt(shape[-1]), shape).astype(np.float32)
    return rng.normal(0.0, 2.0 / np.sqrt(shape[-1]), shape).astype(np.float32)


def _shapes(path: str) -> dict[str, list[int]]:
    library = importlib.import_module("pilotfish.backends.llamacpp.library")
    lib = library.library()
    found: dict[str, list[int]] = {}
    name_of = library.function("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)

    class Tensor(ctypes.Structure):  # the beginning of ggml_tensor
        _fields_ = [("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4)]

    class Params(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

    read = library.function("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, Params)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    def note(tensor: int, _: object) -> None:
        ne = Tensor.from_address(tensor).ne
        n = max((i + 1 for i in range(4) if ne[i] != 1), default=1)
        found[name_of(tensor).decode()] = list(ne[:n])[::-1]

    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    make = lib._lib.llama_model_init_from_user
    make.restype = ctypes.c_void_p
    make.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, type(params)]
    with library.listen() as said:
        model = make(read(path.encode(), Params(True, None)), ctypes.cast(note, ctypes.c_void_p), None, params)
    if not model:
        raise SystemExit(f"{path}: {said.reason}")
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_shapes(line.rstrip("\n"))), flush=True)
