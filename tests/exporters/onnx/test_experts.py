"""Mixtures of experts on ONNX Runtime: only experts that are picked count, and a row does not see who else picks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from expert_files import MIXTURES
from family_files import VOCAB_SIZE, random_family
from folders import folder_of, write_safetensors
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tiers import quick

import pilotfish
from pilotfish.backends import get
from pilotfish.exporters.onnx.import_model import Activations, import_model
from pilotfish.exporters.quantize.blocks import Blocks, unpack
from pilotfish.runtime.files.gguf_file import read_gguf
from pilotfish.runtime.files.open_model import decoder_of, open_model
from pilotfish.runtime.files.safetensors_file import read_safetensors
from pilotfish.runtime.files.stacked_tensor import one_of
from pilotfish.runtime.interfaces import Floats, Session
from pilotfish.runtime.speculation.draft_length import Fixed

pytestmark = pytest.mark.usefixtures("module_cache")
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 200)


def session(path: Path, activations: Activations = "f32") -> Session:
    pytest.importorskip("onnxruntime")
    bundle = import_model(decoder_of(open_model(path)), activations=activations)
    return get("onnx").open(bundle, device=None, threads=2, kv_dtype=None).session()


def reference(path: Path) -> Session:
    return get("reference").open(open_model(path), device=None, threads=1, kv_dtype=None).session()


def near(ours: Floats, theirs: Floats) -> None:
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("engine", ["onnx", "reference"])
def test_an_expert_that_no_token_picks_is_not_computed(engine: str, tmp_path: Path) -> None:
    """Its weights are no numbers; were it computed and weighed by nothing, so were the answer."""
    path = random_family("gpt-oss", tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    for name, tensor in read_gguf(path).tensors.items():
        inner = name.split(".", 2)[-1]
        if inner.endswith("exps.weight") or inner == "ffn_gate_inp.bias":
            values = tensor.values().copy()
            values[3] = np.nan if values.ndim > 1 else -1e9
            start = data.index(bytes(tensor.data))
            data[start : start + tensor.data.nbytes] = values.tobytes()
    path.write_bytes(data)
    opened = session(path) if engine == "onnx" else reference(path)
    logits = [opened.forward(TOKENS[a:b], n_logits=b - a).logits for a, b in ((0, 1), (1, 40))]
    assert np.isfinite(np.concatenate(logits)).all()


@pytest.mark.parametrize("activations", ["f32", "int8"])
@pytest.mark.parametrize("name", quick(MIXTURES, "qwen3moe"))
def test_a_row_does_not_depend_on_who_else_picks_its_experts(
    name: str, activations: Activations, tmp_path: Path
) -> None:
    """Also where an expert has one row more than a tile of products."""
    path = random_family(name, tmp_path / "m.gguf", quant="Q8_0")
    opened = session(path, activations)
    widest = opened.forward(TOKENS, n_logits=len(TOKENS)).logits.copy()
    for width in (2, 3, 129, 130, 150, 170):
        opened.truncate(0)
        assert np.array_equal(opened.forward(TOKENS[:width], n_logits=width).logits, widest[:width]), width


@pytest.mark.parametrize("engine", ["onnx", "openvino", "llamacpp"])
@pytest.mark.parametrize("name", quick(MIXTURES, "gpt-oss"))
def test_drafts_and_prefixes_change_no_answer(name: str, engine: str, tmp_path: Path) -> None:
    if get(engine).version() is None:
        pytest.skip(f"{engine} is not installed")
    if engine == "openvino" and name in ("qwen2moe", "granitemoe"):
        pytest.skip("OpenVINO's reader does not know it")
    path, prompt = random_family(name, tmp_path / "m.gguf", quant="Q8_0"), "the hello and the hello, and the hello"
    with (
        pilotfish.load(path, engine, speculate=False) as plain,
        pilotfish.load(path, engine, draft=path, speculate=Fixed(3), proposers=()) as model,
    ):
        first = [m.generate(prompt, max_new_tokens=30).token_ids for m in (model, plain)]
        again = model.generate(prompt, max_new_tokens=30)
        assert first[0] == first[1] == again.token_ids and len(again.token_ids) > 8
        assert again.stats.accepted > 0


@pytest.mark.parametrize("cache", ["sinks:budget=48", "snapkv:budget=48,per_head=false"])
def test_a_compressed_cache_of_a_model_with_sinks(cache: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path, prompt = random_family("gpt-oss", tmp_path / "m.gguf"), "the hello and the hello, and the hello " * 3
    with (
        pilotfish.load(path, "onnx", cache=cache, speculate=False) as plain,
        pilotfish.load(path, "onnx", cache=cache, draft=path, speculate=Fixed(3), proposers=()) as model,
    ):
        ours, theirs = (m.generate(prompt, max_new_tokens=24) for m in (model, plain))
        assert ours.token_ids == theirs.token_ids and len(ours.token_ids) > 8


def in_mxfp4(folder: Path) -> dict[str, Floats]:
    """Put the experts of a folder into MXFP4, as gpt-oss has them on the hub. Returns the numbers, rounded so."""
    stored = read_safetensors(folder / "model.safetensors")
    tensors = {name: tensor.values().copy() for name, tensor in stored.items()}  # the file is written over
    packed: dict[str, npt.NDArray[Any]] = {}
    rounded: dict[str, Floats] = {}
    for name, values in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = rounded[name] = values
            continue
        rows = np.ascontiguousarray(values.swapaxes(1, 2))
        data = quantize(rows, GGMLQuantizationType.MXFP4).reshape(*rows.shape[:2], -1, 17)
        low, high = data[..., 1:] & 15, data[..., 1:] >> 4  # GGUF: the first half of a block, the second
        numbers = np.concatenate([low, high], axis=-1)
        packed[f"{name}_blocks"] = np.ascontiguousarray(numbers[..., 0::2] | (numbers[..., 1::2] << 4))
        packed[f"{name}_scales"] = np.ascontiguousarray(data[..., 0])
        made = dequantize(data.reshape(len(data), -1), GGMLQuantizationType.MXFP4).reshape(rows.shape)
        rounded[name] = np.ascontiguousarray(made.swapaxes(1, 2))
    write_safetensors(folder / "model.safetensors", packed)
    return rounded


def test_experts_in_mxfp4_lose_nothing(tmp_path: Path) -> None:
    gguf = random_family("gpt-oss", tmp_path / "m.gguf")
    packed, plain = (folder_of("gpt-oss", gguf, tmp_path / name) for name in ("packed", "plain"))
    write_safetensors(plain / "model.safetensors", in_mxfp4(packed))
    expected = reference(plain).forward(TOKENS[:60], n_logits=60).logits
    assert np.array_equal(reference(packed).forward(TOKENS[:60], n_logits=60).logits, expected)
    near(session(packed).forward(TOKENS[:60], n_logits=60).logits, expected)
    tensors, floats = (decoder_of(open_model(folder)).file.tensors for folder in (packed, plain))
    for projection in ("gate", "up", "down"):
        name = f"blk.1.ffn_{projection}_exps.weight"
        made = unpack(one_of(tensors[name], 2))
        assert isinstance(made, Blocks) and (made.bits, made.loss, made.residual) == (8, 0.0, None)
        assert np.array_equal(made.dequantized(), one_of(floats[name], 2).values())


def test_mxfp4_is_what_transformers_reads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    folder = folder_of("gpt-oss", random_family("gpt-oss", tmp_path / "m.gguf"), tmp_path / "f")
    in_mxfp4(folder)
    at, stored = "model.layers.0.mlp.experts.", read_safetensors(folder / "model.safetensors")
    parts = [torch.from_numpy(stored[f"{at}gate_up_proj_{x}"].array().copy()) for x in ("blocks", "scales")]
    theirs = mxfp4.convert_moe_packed_tensors(*parts, dtype=torch.float32).numpy()  # rows are inputs
    for start, projection in enumerate(("gate", "up")):
        ours = decoder_of(open_model(folder)).file.tensors[f"blk.0.ffn_{projection}_exps.weight"].values()
        assert np.array_equal(ours, theirs[..., start::2].swapaxes(1, 2))
