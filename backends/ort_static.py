"""The static graph on ONNX Runtime: one inference session for each shape, its symbols fixed as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..runtime.bundle import open_bundle
from ..runtime.errors import EngineError, OptionError
from ..runtime.interfaces import Floats
from .ort_devices import create_session, find
from .static_session import Inputs, Ladder, StaticWeights, static_bundle, static_info

_DEFAULT = Ladder()


class StaticOptions(BaseModel):
    """Settings of devices that run the static graph.

    activations: "int8" rounds them per row and block where they meet quantized weights; "f32" does not.
    widths, chunk, windows: the shapes; see static_session.Ladder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activations: Literal["int8", "f32"] = "int8"
    widths: tuple[int, ...] = _DEFAULT.widths
    chunk: int = _DEFAULT.chunk
    windows: tuple[int, ...] = _DEFAULT.windows


def open_static(path: Path, device: str, threads: int, options: Mapping[str, object]) -> StaticWeights:
    """The static graph of a bundle folder on a device of ort_devices. Raises OptionError and ModelFileError."""
    import onnxruntime

    try:
        chosen = StaticOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(f"{n}={field.default!r}" for n, field in StaticOptions.model_fields.items())
        name = ".".join(str(part) for part in first["loc"])
        raise OptionError(f"the onnx engine on {device}: {name}: {first['msg']}. Its options are {known}.") from error
    ladder = Ladder(chosen.widths, chosen.chunk, chosen.windows)
    bundle = open_bundle(path)
    model = bundle.folder / static_bundle(bundle)
    settings = {"session.qdq_matmulnbits_accuracy_level": "4" if chosen.activations == "int8" else "0"}
    runner = OrtRunner(lambda shape: create_session(model, find(device), threads, settings=settings, shape=shape))
    first_shape = runner.graph(ladder.widths[0], ladder.windows[0], ladder.widths[0])
    shapes = {x.name: x.shape for x in (*first_shape.get_inputs(), *first_shape.get_outputs())}
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
    return StaticWeights(runner, info, ladder)


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
            return dict(zip(names, graph.run(names, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
            raise EngineError(f"ONNX Runtime failed: {error}") from error

    def close(self) -> None:
        self._graphs.clear()
