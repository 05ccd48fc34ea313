"""Mixtures of experts in folders: what is odd is said in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from family_files import random_family
from folders import folder_of, settings_of, write_safetensors

from pilotfish.runtime.errors import ModelFileError, PilotfishError, UnsupportedModelError
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.files.safetensors_file import read_safetensors

Tensors = dict[str, npt.NDArray[Any]]
AT = "model.layers.1.mlp.experts."


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(settings_of(name, **changes)))

    return change


def with_tensors(change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.array().copy() for name, tensor in read_safetensors(path).items()}
        change(tensors)
        write_safetensors(path, tensors)

    return do


ODD: list[tuple[str, Callable[[Path], None], type[PilotfishError], str]] = [
    (
        "qwen3moe",
        with_tensors(lambda t: t.pop(f"{AT}2.up_proj.weight")),
        ModelFileError,
        r"no tensor .*experts\.2\.up_pr",
    ),
    (
        "qwen3moe",
        with_tensors(lambda t: t.update({f"{AT}5.up_proj.weight": t[f"{AT}4.up_proj.weight"]})),
        ModelFileError,
        r"says that there are 5 experts, and there is a tensor .*experts\.5\.up_proj",
    ),
    (
        "qwen3moe",
        with_tensors(lambda t: t.update({f"{AT}2.up_proj.weight": np.zeros((96, 32), np.float32)})),
        ModelFileError,
        r"experts\.2\.up_proj\.weight has shape \(96, 32\), but \(96, 64\) was expected",
    ),
    (
        "qwen3moe",
        with_tensors(lambda t: t.pop("model.layers.1.mlp.gate.weight")),
        ModelFileError,
        r"1\.mlp\.gate\.weight",
    ),
    ("qwen3moe", changed("qwen3moe", num_experts=4), ModelFileError, "there are 4 experts"),
    ("qwen3moe", changed("qwen3moe", num_experts_per_tok=6), ModelFileError, "6 of 5 experts are no choice"),
    ("qwen3moe", changed("qwen3moe", moe_intermediate_size=64), ModelFileError, r"has shape \(5, 64, 96\)|has shape"),
    ("qwen3moe", changed("qwen3moe", norm_topk_prob=False), UnsupportedModelError, "norm_topk_prob is False, and True"),
    ("qwen2moe", changed("qwen2moe", norm_topk_prob=True), UnsupportedModelError, "norm_topk_prob is True, and False"),
    ("qwen3moe", changed("qwen3moe", decoder_sparse_step=2), UnsupportedModelError, "decoder_sparse_step is 2"),
    ("qwen3moe", changed("qwen3moe", mlp_only_layers=[0]), UnsupportedModelError, r"mlp_only_layers is \[0\]"),
    ("olmoe", changed("olmoe", clip_qkv=8.0), UnsupportedModelError, r"clip_qkv is 8\.0"),
    ("gpt-oss", changed("gpt-oss", swiglu_limit=5.0), UnsupportedModelError, r"swiglu_limit is 5\.0"),
    (
        "gpt-oss",
        with_tensors(lambda t: t.pop("model.layers.1.self_attn.sinks")),
        ModelFileError,
        r"no tensor model\.layers\.1\.self_attn\.sinks",
    ),
    ("gpt-oss", with_tensors(lambda t: t.pop(f"{AT}down_proj_bias")), ModelFileError, "no tensor .*down_proj"),
    (
        "gpt-oss",
        with_tensors(lambda t: t.update({f"{AT}gate_up_proj_blocks": np.zeros((5, 256, 2, 16), np.uint8)})),
        ModelFileError,
        "gate_up_proj_blocks and its scales are no matrices in MXFP4",
    ),
    ("granitemoe", changed("qwen3", num_experts=5), UnsupportedModelError, r"a mixture of experts \(num_experts\)"),
]


@pytest.mark.parametrize(("name", "damage", "error", "words"), ODD)
def test_what_is_odd_is_said_in_a_line(
    name: str, damage: Callable[[Path], None], error: type[PilotfishError], words: str, tmp_path: Path
) -> None:
    folder = folder_of(name, random_family(name, tmp_path / "m.gguf"), tmp_path / "f")
    open_model(folder)
    damage(folder)
    with pytest.raises(error, match=words) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
