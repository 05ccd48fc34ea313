"""The static graph on ONNX Runtime: one inference session for each shape, its symbols fixed as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from ...runtime.errors import EngineError
from ...runtime.files.bundle import Bundle
from ...runtime.interfaces import Floats, Weights
from ...runtime.leaving import in_engine
from ..common.weights import LoadedWeights
from ..fixed_shapes.loaded_model import Inputs, StaticModel
from ..fixed_shapes.session import StaticSession
from ..fixed_shapes.shapes import ShapeOptions, checked_options, static_bundle, static_info
from .devices import create_session, find, shapes_of


class StaticOptions(ShapeOptions):
    """Settings of devices that run the static graph.

    activations: "int8" rounds them per row and block where they meet quantized weights; "f32" does not.
    """

    activations: Literal["int8", "f32"] = "int8"


def static_options(device: str, options: Mapping[str, object]) -> StaticOptions:
    """The checked settings of a device. Raises OptionError."""
    return checked_options(StaticOptions, f"the onnx engine on {device}", options)


def open_static(bundle: Bundle, device: str, threads: int, options: Mapping[str, object]) -> Weights:
    """The static graph of a bundle on one of DEVICES. Raises OptionError and ModelFileError."""
    import onnxruntime

    chosen = static_options(device, options)
    ladder = chosen.ladder
    model = bundle.path / static_bundle(bundle)
    settings = {"session.qdq_matmulnbits_accuracy_level": "4" if chosen.activations == "int8" else "0"}
    runner = OrtRunner(lambda shape: create_session(model, find(device), threads, settings=settings, shape=shape))
    first_shape = runner.graph(ladder.widths[0], ladder.windows[0], ladder.widths[0])
    shapes = shapes_of(first_shape, model)
    info = static_info(
        bundle,
        shapes,
        ladder,
        engine="onnx",
        version=str(onnxruntime.__version__),
        device=device,
        threads=threads,
        settings=chosen.activations,
    )
    return LoadedWeights(StaticModel(runner, info, ladder), StaticSession)


class OrtRunner:
    """Inference sessions by shape, made when they are first needed."""

    def __init__(self, create: Callable[[Mapping[str, int]], Any]) -> None:
        self._create = create
        self._graphs: dict[tuple[int, int, int], Any] = {}

    def graph(self, width: int, window: int, n_logits: int) -> Any:
        """The inference session of a shape."""
        key = (width, window, n_logits)
        if key not in self._graphs:
            self._graphs[key] = self._create({"n": width, "W": window, "m": n_logits})
        return self._graphs[key]

    def run(self, width: int, window: int, inputs: Inputs) -> Mapping[str, Floats]:
        graph = self.graph(width, window, len(inputs["logit_rows"]))
        names = [x.name for x in graph.get_outputs()]
        try:
            with in_engine:
                return dict(zip(names, graph.run(names, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
            raise EngineError(f"ONNX Runtime failed: {error}") from error

    def close(self) -> None:
        self._graphs.clear()
