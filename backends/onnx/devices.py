"""Devices of ONNX Runtime: which execution provider each is, which package has it, and sessions that stay on it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.errors import EngineError, ModelFileError, OptionError
from ...runtime.leaving import in_engine
from ..fixed_shapes.shapes import FORMAT

_UNTESTED = "untested: no such device was at hand. It runs the graph of fixed shapes and never falls back to the CPU"


@dataclass(frozen=True, slots=True)
class Device:
    """A device by the name it is asked for.

    package: what has the provider; plugin: the module of a package that brings it as a library of its own.
    """

    provider: str
    package: str
    format: str = FORMAT  # standard operators: every provider knows them
    plugin: str | None = None
    note: str = _UNTESTED


DEVICES: Mapping[str, Device] = {
    "cpu": Device("CPUExecutionProvider", "onnxruntime", "onnx", note="tested: the engine contract and real weights"),
    "static": Device(
        "CPUExecutionProvider",
        "onnxruntime",
        note="tested: emulates on the CPU a device that compiles fixed shapes; for trying it out, not for speed",
    ),
    "cuda": Device("CUDAExecutionProvider", "onnxruntime-gpu"),
    "dml": Device("DmlExecutionProvider", "onnxruntime-directml"),
    "coreml": Device("CoreMLExecutionProvider", "onnxruntime for macOS"),
    "webgpu": Device("WebGpuExecutionProvider", "onnxruntime-ep-webgpu", plugin="onnxruntime_ep_webgpu"),
    "qnn": Device(
        "QNNExecutionProvider",
        "onnxruntime-qnn",
        plugin="onnxruntime_qnn",
        note="untested on hardware; what its emulator runs and what it refuses is in docs/npu.md",
    ),
}


def present() -> tuple[str, ...]:
    """Devices whose provider this installation has, "cpu" first."""
    import onnxruntime

    built_in = onnxruntime.get_available_providers()
    return tuple(name for name, d in DEVICES.items() if d.provider in built_in or _plugged_in(d))


def find(name: str) -> Device:
    """A device that is here. Raises OptionError with the package that has it."""
    here = present()
    if name in here:
        return DEVICES[name]
    way = f"It needs the package {DEVICES[name].package}." if name in DEVICES else "Check the name."
    raise OptionError(f"the onnx engine has no device {name!r} here; it has {', '.join(here)}. {way}")


def create_session(
    path: Path,
    device: Device,
    threads: int,
    *,
    settings: Mapping[str, str],
    shape: Mapping[str, int] | None = None,
    optimize: bool = True,
    graph: bytes | None = None,
) -> Any:
    """An inference session that runs on this device and nowhere else.

    settings: of the session. shape: sizes of the graph's symbols. optimize: fuse operators beyond the basic level.
    graph: run this instead of the file's own, over the weights beside it.
    Raises ModelFileError where the graph cannot be opened, EngineError where it would run somewhere else.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, with its message
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    for symbol, size in (shape or {}).items():
        options.add_free_dimension_override_by_name(symbol, size)
    on_cpu = device.provider == "CPUExecutionProvider"
    if not on_cpu:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    model: str | bytes = str(path)
    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        model = graph
    try:  # without the wrapper's fallback: never another provider behind the user's back
        with in_engine:
            if _plugged_in(device):
                options.add_provider_for_devices(_plugin_devices(device), _plugin_settings(device))
                session = onnxruntime.InferenceSession(model, options, enable_fallback=0)
            else:
                session = onnxruntime.InferenceSession(model, options, providers=[device.provider], enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
        raise ModelFileError(f"ONNX Runtime cannot open {path} with {device.provider}: {error}") from error
    used = session.get_providers()
    if device.provider not in used:
        raise EngineError(
            f"ONNX Runtime put {path} on {', '.join(used)} instead of {device.provider}, whose driver may be missing. "
            "Repair it, or choose the device cpu."
        )
    return session


def shapes_of(session: Any, path: Path) -> dict[str, list[Any]]:
    """Shape of every input and output by name: numbers, symbols, None. Raises ModelFileError where it has none."""
    try:
        return {x.name: list(x.shape) for x in (*session.get_inputs(), *session.get_outputs())}
    except (UnicodeDecodeError, TypeError) as error:
        raise ModelFileError(
            f"{path} is damaged: the names and shapes of its inputs cannot be read: {error}."
        ) from error


def _plugin_devices(device: Device) -> list[Any]:
    import onnxruntime

    return [d for d in onnxruntime.get_ep_devices() if d.ep_name == device.provider][:1]


def _plugin_settings(device: Device) -> dict[str, str]:
    module = importlib.import_module(device.plugin or "")
    backend = getattr(module, "get_qnn_htp_path", None)
    return {} if backend is None else {"backend_path": str(backend())}


_registered: set[str] = set()


def _plugged_in(device: Device) -> bool:
    """Whether the provider's package is installed, could be registered, and found a device."""
    if device.plugin is None:
        return False
    import onnxruntime

    try:
        module = importlib.import_module(device.plugin)
        if device.provider not in _registered:
            onnxruntime.register_execution_provider_library(device.provider, str(module.get_library_path()))
            _registered.add(device.provider)
        return bool(_plugin_devices(device))
    except Exception:  # not installed, or its library does not load here: then there is no such device
        return False
