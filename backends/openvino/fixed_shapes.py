"""The static graph on OpenVINO: its NPU, or that plug-in's path for fixed shapes with the CPU in the NPU's place."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import EngineError, ModelFileError, OptionError
from ...runtime.files.bundle import Bundle
from ...runtime.interfaces import Floats, Weights
from ...runtime.leaving import in_engine
from ..common.weights import LoadedWeights
from ..fixed_shapes.loaded_model import Inputs, StaticModel
from ..fixed_shapes.session import StaticSession
from ..fixed_shapes.shapes import Ladder, ShapeOptions, checked_options, static_bundle, static_info

EMULATED = "npu-emulated"
NOTES = {
    "npu": "untested: no such device was at hand. It runs the graph of fixed shapes, in the device's own precision",
    EMULATED: "tested: the NPU plug-in's path for fixed shapes, computed on the CPU; for trying it out, not for speed",
}


def static_devices() -> tuple[str, ...]:
    """Devices that run the static graph: an NPU where OpenVINO lists one, and its emulation."""
    import openvino

    listed = openvino.Core().available_devices
    return (*(("npu",) if any(d.split(".")[0] == "NPU" for d in listed) else ()), EMULATED)


def ladder_of(device: str, options: Mapping[str, object]) -> Ladder:
    """The shapes that a device runs. Raises OptionError where it is not here or has no such setting."""
    if device not in static_devices():
        raise OptionError(
            f"the openvino engine lists no {device!r} here; without hardware and driver there is {EMULATED!r}."
        )
    return checked_options(ShapeOptions, f"the openvino engine on {device}", options).ladder


def open_static(bundle: Bundle, device: str, threads: int, options: Mapping[str, object]) -> Weights:
    """The static graph of a bundle on "npu" or "npu-emulated".

    options: widths, chunk and windows; see static_shapes.Ladder. Raises OptionError and ModelFileError.
    """
    import openvino

    ladder = ladder_of(device, options)
    model = bundle.path / static_bundle(bundle)
    runner = OvRunner(model, _settings(device, threads))
    info = static_info(
        bundle,
        runner.shapes(),
        ladder,
        engine="openvino",
        version=str(openvino.__version__).split("-")[0],
        device=device,
        threads=threads,
        settings="f32" if device == EMULATED else "",
    )
    return LoadedWeights(StaticModel(runner, info, ladder), StaticSession)


def _settings(device: str, threads: int) -> dict[str, object]:
    """Properties of the NPU plug-in."""
    if device != EMULATED:
        return {}
    return {
        "NPU_USE_NPUW": "YES",
        "NPUW_DEVICES": "CPU",
        # One graph. Cut into repeated parts (the default) its weights are rounded: 1e-3 of the largest logit.
        "NPUW_ONLINE_PIPELINE": "NONE",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


class OvRunner:
    """Compiled graphs by shape, made when they are first needed; one at a time is run."""

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        import openvino

        self._ov, self._core = openvino, openvino.Core()
        self._path, self._settings = path, dict(settings)
        self._requests: dict[tuple[int, int, int], Any] = {}
        self._turn = threading.Lock()
        try:
            with in_engine:
                self._model: Any = self._core.read_model(path)
        except RuntimeError as error:
            raise ModelFileError(f"OpenVINO cannot read {path}: {error}") from error

    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """Shapes of inputs and outputs by name; "?" is a symbol."""
        ports = (*self._model.inputs, *self._model.outputs)
        return {port.get_any_name(): _dimensions(port) for port in ports}

    def run(self, width: int, window: int, inputs: Inputs) -> Mapping[str, Floats]:
        with self._turn:
            request = self._request(width, window, len(inputs["logit_rows"]))
            try:
                for name, values in inputs.items():
                    request.set_tensor(name, self._ov.Tensor(values, shared_memory=True))
                with in_engine:
                    request.infer()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed: {error}") from error
            outputs = (port.get_any_name() for port in self._model.outputs)
            return {name: np.array(request.get_tensor(name).data, dtype=np.float32) for name in outputs}

    def close(self) -> None:
        self._requests.clear()
        self._model = None

    def _request(self, width: int, window: int, n_logits: int) -> Any:
        key = (width, window, n_logits)
        if key not in self._requests:
            model = self._model.clone()
            model.reshape({port.get_any_name(): _fixed(port, width, window, n_logits) for port in model.inputs})
            try:
                with in_engine:
                    compiled = self._core.compile_model(model, "NPU", self._settings)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO cannot compile {self._path} for its NPU: {error}") from error
            self._requests[key] = compiled.create_infer_request()
        return self._requests[key]


def _dimensions(port: Any) -> tuple[int | str, ...]:
    return tuple("?" if d.is_dynamic else d.get_length() for d in port.get_partial_shape())


def _fixed(port: Any, width: int, window: int, n_logits: int) -> list[int]:
    """The shape of an input with its symbols fixed."""
    known = {
        "input_ids": [1, width],
        "position_ids": [1, width],
        "logit_rows": [n_logits],
        "mask": [1, 1, width, window],
        "place": [1, 1, window, width],
    }
    name = port.get_any_name()
    return known.get(name) or [window if d == "?" else int(d) for d in _dimensions(port)]
