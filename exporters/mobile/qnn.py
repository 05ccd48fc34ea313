"""The target "qnn": the graph of fixed shapes, rounded to integers and compiled for Qualcomm's Hexagon NPU.

The NPU takes weights of 8 bits with a scale for each column and activations of 16 bits whose ranges are fixed
beforehand, found on a calibration text. onnxruntime-qnn compiles without a device, and computes on x86 what
the NPU would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import EngineError, UnsupportedModelError
from ...runtime.interfaces import Tokens
from ...runtime.progress import Share
from ..onnx.fixed_shape_steps import StaticSteps, Values
from .onnx_static import open_fixed, read_all
from .onnx_static import refuse as refuse_static
from .pack import Pack, Written, distance, quiet

_INSTALL = "pip install onnxruntime-qnn onnx"
PACKAGES = {"onnx": _INSTALL, "onnxruntime": _INSTALL, "onnxruntime_qnn": _INSTALL}
FILE, BINARY = "context.onnx", "context_qnn.bin"
WIDTH, WINDOW = 4, 256  # rows of a step, columns of the cache
HTP_ARCH, SOC_MODEL = "75", "57"  # Hexagon v75 in SM8650; a later one runs it, too
_HIDDEN = -40.0  # e^-40 of a share; the -3e4 of engines in floats would cost the scores all their 16 bits
_CALIBRATION = 96  # tokens
_EMULATED = 8  # tokens asked of the emulator, which takes seconds a layer
_LIMIT = 0.5  # of the relative difference to the source
_PROVIDER = "QNNExecutionProvider"


def refuse(pack: Pack) -> None:
    """Raise UnsupportedModelError where the graph of fixed shapes cannot express the family."""
    refuse_static(pack)
    if pack.source.context_length < WINDOW:
        raise UnsupportedModelError(
            f"the context binary has a window of {WINDOW} columns, and this model was made for contexts of "
            f"{pack.source.context_length}. Leave out the target qnn."
        )


def write(pack: Pack, folder: Path, progress: Share) -> Written:
    """context.onnx and its binary, run in the emulator against the source."""
    from .decoder_weights import dense

    decoder = dense(pack.decoder())
    shape = decoder.shape
    tokens = pack.probe()[0]

    def steps() -> StaticSteps:
        return StaticSteps(shape.n_layers, shape.kv_heads, shape.head_dim, width=WIDTH, window=WINDOW, hidden=_HIDDEN)

    with tempfile.TemporaryDirectory(prefix="qdq", dir=folder) as scratch:
        plain = _fixed_graph(decoder, Path(scratch))
        progress(0.1)
        rounded = Path(scratch) / "rounded.onnx"
        _round(plain, rounded, _calibration(pack, steps(), plain))
        in_floats = read_all(steps(), tokens, open_fixed(rounded, {}, {"session.disable_quant_qdq": "1"}))
        report = pack.compare("qnn", in_floats, _LIMIT)
        progress(0.4)
        _compile(rounded, folder / FILE)
        progress(0.7)
    found = read_all(steps(), tokens[:_EMULATED], _on_device(folder / FILE))
    report = {f"rounding_{name}": value for name, value in report.items()} | pack.compare("qnn", found, _LIMIT)
    report["relative_difference_to_rounding"] = distance(found, in_floats[: len(found)])["relative_difference"]
    recipe = {
        "weights": "int8 by column",
        "activations": "uint16",
        "htp_arch": HTP_ARCH,
        "soc_model": SOC_MODEL,
        "width": str(WIDTH),
        "window": str(WINDOW),
        "hidden": str(_HIDDEN),
        "binary": BINARY,
    }
    return Written(FILE, recipe, report)


def _fixed_graph(decoder: Any, folder: Path) -> Path:
    """The graph of fixed shapes in f32, with its symbols replaced by numbers."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    from ..onnx.fixed_shape_graph import StaticGraph
    from ..onnx.writer import OnnxWriter

    with (folder / "plain.data").open("wb") as data:
        writer = OnnxWriter(data, "plain.data")
        StaticGraph(writer, decoder, norm="lp").build()
    path = folder / "plain.onnx"
    writer.save(path)
    model = onnx.load(path, load_external_data=False)
    for symbol, size in {"n": WIDTH, "m": WIDTH, "W": WINDOW}.items():
        make_dim_param_fixed(model.graph, symbol, size)
    onnx.save(model, path)
    return path


def _calibration(pack: Pack, steps: StaticSteps, plain: Path) -> Iterator[Values]:
    """Inputs of successive steps over the calibration texts."""
    from ...runtime.text.calibration_text import calibration_samples

    session = open_fixed(plain, {})
    names = [x.name for x in session.get_outputs()]
    tokens: Tokens = np.concatenate(calibration_samples(pack.source.tokenizer, None))[:_CALIBRATION]
    for start in range(0, len(tokens) - WIDTH + 1, WIDTH):
        inputs = steps.inputs(tokens[start : start + WIDTH])
        yield inputs
        steps.store(dict(zip(names, session.run(names, inputs), strict=True)), WIDTH)


def _round(plain: Path, out: Path, inputs: Iterator[Values]) -> None:
    """Write the graph with what the NPU rounds made explicit (QuantizeLinear, DequantizeLinear)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Values | None:
            return next(inputs, None)

    with quiet():
        config = get_qnn_qdq_config(
            plain, Reader(), activation_type=QuantType.QUInt16, weight_type=QuantType.QInt8, per_channel=True
        )
        config.use_external_data_format = True
        quantize(plain, out, config)


def _compile(rounded: Path, out: Path) -> None:
    """Write the context binary. Raises UnsupportedModelError naming the operators that the NPU does not take."""
    try:
        _session(rounded, {"htp_arch": HTP_ARCH, "soc_model": SOC_MODEL}, _context(out))
    except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
        left = _left_over(rounded)
        why = f"it does not take the operators {', '.join(left)}" if left else str(error)
        raise UnsupportedModelError(
            f"Qualcomm's NPU cannot run this model: {why}. Leave out the target qnn."
        ) from error
    if not out.with_name(BINARY).is_file():
        raise EngineError(f"onnxruntime-qnn wrote no {BINARY}. Check its version: pip show onnxruntime-qnn")


def _context(out: Path) -> dict[str, str]:
    return {"ep.context_enable": "1", "ep.context_file_path": str(out), "ep.context_embed_mode": "0"}


def _left_over(rounded: Path) -> list[str]:
    """Operators that run elsewhere where that is allowed."""
    try:
        session = _session(rounded, {}, {"session.record_ep_graph_assignment_info": "1"}, alone=False)
    except Exception:  # then there is nothing to be learned from it
        return []
    parts = session.get_provider_graph_assignment_info()
    return sorted({node.op_type for part in parts if part.ep_name != _PROVIDER for node in part.get_nodes()})


def _on_device(context: Path) -> Any:
    """The emulator over a context binary. Raises EngineError."""
    try:
        return _session(context, {}, {})
    except Exception as error:  # as above
        raise EngineError(f"the emulator of Qualcomm's NPU cannot open {context.name}: {error}") from error


def _session(path: Path, options: dict[str, str], settings: dict[str, str], *, alone: bool = True) -> Any:
    """A session on the NPU or its emulator. alone: no other provider may take a node."""
    import onnxruntime
    import onnxruntime_qnn

    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == _PROVIDER]
    if not devices:
        onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == _PROVIDER]
    wanted = onnxruntime.SessionOptions()
    wanted.log_severity_level = 4  # what fails is raised, with its message
    if alone:
        wanted.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for key, value in settings.items():
        wanted.add_session_config_entry(key, value)
    wanted.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **options})
    return onnxruntime.InferenceSession(str(path), wanted, enable_fallback=0)
