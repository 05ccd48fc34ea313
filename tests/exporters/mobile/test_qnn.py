"""One layer of SmolLM2 on the emulator of Qualcomm's NPU (package onnxruntime-qnn): what it runs, and what it refuses.

The static graph with 64 of the model's tokens and its first layer, weights in f32, is quantized as that NPU wants it:
activations in 16 bits, weights in 8 bits by channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import imported
from real_weights import smollm2

from pilotfish.backends.onnx.devices import DEVICES, create_session, present
from pilotfish.exporters.onnx.decoder import Decoder, Layer, Linear
from pilotfish.exporters.onnx.fixed_shape_graph import StaticGraph
from pilotfish.exporters.onnx.stored_decoder import StoredDecoder
from pilotfish.exporters.onnx.writer import OnnxWriter
from pilotfish.exporters.quantize.blocks import Blocks, Floats
from pilotfish.runtime.errors import ModelFileError
from pilotfish.runtime.files.gguf_file import read_gguf

pytestmark = pytest.mark.real  # a minute
WIDTH, WINDOW, VOCAB = 4, 64, 64
HIDDEN = np.float32(-40.0)  # e^-40 of a share; the -3e4 of engines in floats would cost the scores all their 16 bits
SHAPE = {"n": WIDTH, "m": WIDTH, "W": WINDOW}
LIMITS = {"new_key_0": 0.02, "new_value_0": 0.06, "hidden": 0.15, "logits": 0.15}
Values = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", autouse=True)
def emulator() -> None:
    pytest.importorskip("onnxruntime_qnn", reason="the emulator is not installed: pip install onnxruntime-qnn")
    if "qnn" not in present():
        pytest.skip("onnxruntime-qnn is installed, but lists no device here")


def dense(weight: Blocks | Floats) -> Floats:
    return weight.dequantized() if isinstance(weight, Blocks) else weight


def one_layer(path: Path, folder: Path) -> Path:
    """The static graph of one real layer over a part of the vocabulary, in f32."""
    decoder = StoredDecoder(read_gguf(path)).decoder()
    real = decoder.layer(0)
    names = ("query", "key", "value", "output", "gate", "up", "down")
    layer: Layer = replace(real, **{n: Linear(dense(getattr(real, n).weight), getattr(real, n).bias) for n in names})
    shape = replace(decoder.shape, n_layers=1, vocab_size=VOCAB, context_length=WINDOW)
    part = Decoder(shape, dense(decoder.embedding)[1000 : 1000 + VOCAB], lambda i: layer, decoder.final_norm, None)
    with (folder / "block.data").open("wb") as data:
        writer = OnnxWriter(data, "block.data")
        StaticGraph(writer, part).build()
    writer.save(folder / "block.onnx")
    return folder / "block.onnx"


def steps(runner: Any, n_steps: int, seed: int) -> Iterator[tuple[Values, Values]]:
    """Inputs and the f32 graph's outputs of successive steps, the cache filled by the graph itself."""
    rng = np.random.default_rng(seed)
    shapes = {x.name: x.shape for x in runner.get_inputs()}
    cache = {
        name: np.zeros((1, shapes[name][1], WINDOW, shapes[name][3]), np.float32) for name in shapes if "past" in name
    }
    for base in range(0, n_steps * WIDTH, WIDTH):
        rows = np.arange(WIDTH)
        mask = np.full((1, 1, WIDTH, WINDOW), HIDDEN)
        mask[..., :base] = 0
        mask[0, 0, :, base : base + WIDTH][np.tri(WIDTH, dtype=bool)] = 0
        place = np.zeros((1, 1, WINDOW, WIDTH), np.float32)
        place[0, 0, base + rows, rows] = 1
        inputs = {
            "input_ids": rng.integers(0, VOCAB, (1, WIDTH)),
            "position_ids": (base + rows)[None],
            "logit_rows": rows,
            "mask": mask,
            "place": place,
            **{name: x.copy() for name, x in cache.items()},
        }
        names = [x.name for x in runner.get_outputs()]
        outputs = dict(zip(names, runner.run(names, inputs), strict=True))
        yield inputs, outputs
        for kind in ("key", "value"):
            cache[f"past_{kind}_0"][:, :, base : base + WIDTH] = outputs[f"new_{kind}_0"]


def test_a_layer_runs_quantized_and_stays_near_f32(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    model = one_layer(smollm2(), tmp_path)
    plain = create_session(model, DEVICES["static"], 2, settings={}, shape=SHAPE)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([i for seed in range(8) for i, _ in steps(plain, 14, seed)])

        def get_next(self) -> Values | None:
            return next(self._left, None)

    config = get_qnn_qdq_config(
        model, Reader(), activation_type=QuantType.QUInt16, weight_type=QuantType.QInt8, per_channel=True
    )
    quantized = tmp_path / "quantized.onnx"
    quantize(model, quantized, config)
    device = create_session(quantized, DEVICES["qnn"], 2, settings={}, shape=SHAPE)
    assert device.get_providers()[0] == "QNNExecutionProvider"
    with pytest.raises(ModelFileError, match="QNNExecutionProvider"):
        create_session(quantized, DEVICES["qnn"], 2, settings={})  # shapes that are not fixed
    in_f32 = create_session(quantized, DEVICES["static"], 2, settings={"session.disable_quant_qdq": "1"}, shape=SHAPE)
    errors: dict[str, list[tuple[float, float, float]]] = {}
    agree = []
    for inputs, wanted in steps(plain, 14, seed=99):
        names = list(wanted)
        on_device, rounded = (dict(zip(names, s.run(names, inputs), strict=True)) for s in (device, in_f32))
        for name in names:
            pairs = ((on_device, wanted), (rounded, wanted), (on_device, rounded))
            errors.setdefault(name, []).append(tuple(distance(x[name], y[name]) for x, y in pairs))  # type: ignore[arg-type]
        agree += (on_device["logits"].argmax(axis=1) == wanted["logits"].argmax(axis=1)).tolist()
    for name, found in errors.items():
        device_f32, rounded_f32, device_rounded = np.mean(found, axis=0)
        print(
            f"{name}: device against f32 {device_f32:.4f}, rounding in f32 arithmetic against f32 {rounded_f32:.4f}, "
            f"device against that {device_rounded:.4f}"
        )
        assert device_f32 < LIMITS[name]
    print(f"best token agrees in {sum(agree)} of {len(agree)}")
    assert np.mean(agree) > 0.8


def distance(x: Floats, y: Floats) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def test_weights_in_blocks_are_refused_and_never_run_elsewhere() -> None:
    graph = imported(smollm2(), form="onnx-static") / "model.onnx"
    with pytest.raises(ModelFileError, match="QNNExecutionProvider"):
        create_session(graph, DEVICES["qnn"], 2, settings={}, shape=SHAPE)
