"""GPTQ and AWQ checkpoints: what is multiplied is what their definitions say, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import random_family
from folders import floats_of, folder_of, settings_of, write_safetensors
from model_files import imported
from packed_weights import Method, quantization, quantized
from tiers import quick

from pilotfish.backends import get
from pilotfish.exporters.quantize.blocks import Blocks, unpack
from pilotfish.runtime.errors import ModelFileError, UnsupportedModelError
from pilotfish.runtime.files.folder_model import FolderModel
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats

pytestmark = pytest.mark.usefixtures("module_cache")
BITS: dict[Method, tuple[int, ...]] = {"gptq": (4, 8), "gptq_v2": (4, 8), "awq": (4,)}
CASES = [(method, bits) for method, all_bits in BITS.items() for bits in all_bits]
TOKENS = np.random.default_rng(0).integers(0, 272, 40)
NOISE = 2e-5  # of the largest logit: sums in another order


def logits(path: Path, engine: str = "reference") -> Floats:
    session = get(engine).open(open_model(path), device=None, threads=1, kv_dtype=None).session()
    return session.forward(TOKENS, n_logits=len(TOKENS)).logits


@pytest.mark.parametrize(("method", "bits"), CASES)
def test_blocks_are_those_of_the_checkpoint(method: Method, bits: int, tmp_path: Path) -> None:
    other, plain = quantized(tmp_path, "qwen3", method, bits, 32)
    packed_file, plain_file = FolderModel(other).file, FolderModel(plain).file
    for name in ("attn_q", "attn_output", "ffn_gate", "ffn_down"):
        tensor = packed_file.tensors[f"blk.1.{name}.weight"]
        made, meant = unpack(tensor), plain_file.tensors[f"blk.1.{name}.weight"].values()
        assert isinstance(made, Blocks) and (made.bits, made.block, made.residual, made.loss) == (bits, 32, None, 0.0)
        assert np.array_equal(made.dequantized(), meant) and np.array_equal(tensor.values(), meant)
        assert {int(x) for x in np.unique(made.zero_point)} >= {0, (1 << bits) - 1}


@pytest.mark.parametrize("group", [16, 64, -1])
def test_groups_of_any_width_become_blocks(group: int, tmp_path: Path) -> None:
    other, plain = quantized(tmp_path, "qwen3", "gptq", 4, group)
    down = FolderModel(other).file.tensors["blk.0.ffn_down.weight"]
    made = unpack(down)
    assert isinstance(made, Blocks) and made.block == {16: 16, 64: 64, -1: 128}[group]
    assert np.array_equal(logits(other), logits(plain))


@pytest.mark.parametrize(
    "case",
    quick(
        [(n, m) for n in ("llama with biases", "qwen2 yarn", "qwen3", "phi3") for m in ("gptq", "awq")],
        ("llama with biases", "awq"),
        ("qwen3", "gptq"),
    ),
    ids=str,
)
def test_answers_are_those_of_the_floats_that_are_meant(case: tuple[str, Method], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    name, method = case
    other, plain = quantized(tmp_path, name, method, 4, 32)
    expected = logits(plain)
    assert np.array_equal(logits(other), expected)
    found = logits(imported(other, activations="f32"), "onnx")
    assert np.abs(found - expected).max() < NOISE * np.abs(expected).max()


def test_zeros_for_biases_that_a_family_has_not_are_left_out(tmp_path: Path) -> None:
    """Some quantizers write a bias for every matrix."""
    folder = folder_of("qwen3", random_family("qwen3", tmp_path / "m.gguf"), tmp_path / "f")
    tensors = floats_of("qwen3", tmp_path / "m.gguf")
    before = logits(folder)
    bias = {"model.layers.0.mlp.down_proj.bias": np.zeros(64, np.float32)}
    write_safetensors(folder / "model.safetensors", tensors | bias)
    assert np.array_equal(logits(folder), before)
    write_safetensors(folder / "model.safetensors", tensors | {key: x + 1 for key, x in bias.items()})
    with pytest.raises(UnsupportedModelError, match=r"has the tensor model\.layers\.0\.mlp\.down_proj\.bias"):
        open_model(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "fp8"}, "quantized by 'fp8'; GPTQ and AWQ are read"),
        ({"bits": 3}, "weights of 3 bits are not; those of 4 and 8 are"),
        ({"checkpoint_format": "marlin"}, "packed as 'marlin'"),
        ({"dynamic": {"-:.*": {}}}, "several ways"),
        ({"group_size": 8}, "was expected of groups of 8 columns"),
        ({"group_size": "x"}, "group_size is 'x'"),
    ],
)
def test_what_is_packed_otherwise_is_said_in_a_line(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder, _ = quantized(tmp_path, "qwen3", "gptq", 4, 32)
    said = {**quantization("gptq", 4, 32), **changes}
    (folder / "config.json").write_text(json.dumps(settings_of("qwen3", quantization_config=said)))
    with pytest.raises((UnsupportedModelError, ModelFileError), match=words) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


def test_an_order_of_columns_of_their_own_is_refused(tmp_path: Path) -> None:
    folder, _ = quantized(tmp_path, "qwen3", "gptq", 4, 32)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])["model.layers.2.mlp.up_proj.g_idx"]["data_offsets"]
    order = np.frombuffer(data, np.int32, (end - begin) // 4, 8 + length + begin)[::-1].copy()
    data[8 + length + begin : 8 + length + end] = order.tobytes()
    path.write_bytes(data)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.2\.mlp\.up_proj .*desc_act"):
        open_model(folder)
