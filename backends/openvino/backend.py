"""OpenVINO: decoders with PagedAttention over our own block tables, from an IR or straight from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...runtime.errors import ModelFileError, OptionError, PilotfishError, UnsupportedModelError
from ...runtime.files.bundle import Bundle
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.gguf_model import GgufModel
from ...runtime.files.ir_folder import IrFolder
from ...runtime.files.model_file import ModelFile
from ...runtime.files.open_model import bundle_of, gguf_of
from ...runtime.install import install_command
from ...runtime.interfaces import Weights
from ...runtime.profiling.canary import Canary
from ...runtime.telemetry import without_telemetry
from .. import require, usable
from ..common.packages import package_version, problem_of
from ..common.weights import LoadedWeights
from ..fixed_shapes.shapes import FORMAT
from ..protocol import NO_OPTIONS, Options
from .encoder_decoder import open_encoder_decoder
from .fixed_shapes import NOTES, ladder_of, open_static, static_devices
from .gguf_graph import read_gguf_graph
from .graph import read_ir
from .ir_folder import open_ir_folder, own_answer
from .loaded_model import Facts, OvModel
from .options import cache_types, parse_options
from .session import OvSession


class OvBackend:
    """The fastest to verify on a CPU; wheels only, no compiler, no torch."""

    name = "openvino"

    @property
    def install(self) -> str:
        return install_command("openvino")

    def version(self) -> str | None:
        with without_telemetry():
            found = package_version("openvino")
        return None if found is None else found.split("-")[0]

    def problem(self) -> str | None:
        with without_telemetry():
            return problem_of(self.name, "openvino", _listed)

    def devices(self) -> tuple[str, ...]:
        if not usable(self):
            return ()
        listed = sorted(_listed(), key=lambda d: (d != "cpu", d))
        return (*(d for d in listed if d.split(".")[0] != "npu"), *static_devices())

    def notes(self) -> dict[str, str]:
        return {name: NOTES[name] for name in self.devices() if name in NOTES}

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        if device in NOTES:
            return (FORMAT,)
        return ("openvino", "gguf") if device in (None, "cpu") else ()

    def check(self, device: str | None, kv_dtype: str | None, options: Options) -> None:
        if device in NOTES:
            if kv_dtype not in (None, "f32"):
                raise OptionError(f"the openvino engine on {device} stores its cache in f32 only, not {kv_dtype!r}.")
            ladder_of(device, options)
            return
        chosen = parse_options(options)
        if device not in (None, "cpu"):
            raise OptionError(f"the openvino engine runs models on cpu so far, not on {device!r}.")
        cache_types(kv_dtype, chosen.precision)

    def open(
        self, model: ModelFile, *, device: str | None, threads: int, kv_dtype: str | None, options: Options = NO_OPTIONS
    ) -> Weights:
        require(self)
        self.check(device, kv_dtype, options)
        if device in NOTES:
            return open_static(bundle_of(model), device, threads, options)
        chosen = parse_options(options)
        if isinstance(model, IrFolder):
            cache = cache_types(kv_dtype, chosen.precision)
            return LoadedWeights(open_ir_folder(model, chosen, cache, threads, str(self.version())), OvSession)
        if "gguf" in model.formats and "openvino" not in model.formats:
            read, facts = _gguf(gguf_of(model), chosen.q4_k_minima)
        else:
            bundle = bundle_of(model)
            if "openvino" in bundle.manifest.encoders:
                return open_encoder_decoder(bundle, chosen, threads, kv_dtype, version=str(self.version()))
            read, facts = _bundle(bundle)
        cache = cache_types(kv_dtype, chosen.precision)
        return LoadedWeights(OvModel(read, facts, chosen, cache, threads, str(self.version())), OvSession)

    def known_answer(self, model: ModelFile) -> Canary | None:
        """What an IR made elsewhere answers as it is; None for what others judge, and for what does not run."""
        try:
            return own_answer(model) if isinstance(model, IrFolder) else None
        except PilotfishError:
            return None


BACKEND = OvBackend()


def _listed() -> list[str]:
    """Devices as OpenVINO lists them, in lower case."""
    import openvino

    return [device.lower() for device in openvino.Core().available_devices]


def _bundle(bundle: Bundle) -> tuple[Callable[[], Any], Facts]:
    manifest = bundle.manifest
    if "openvino" not in manifest.formats:
        raise ModelFileError(f"{bundle} holds no OpenVINO model; it holds {', '.join(manifest.formats)}.")
    facts = Facts(
        name=str(bundle),
        architecture=manifest.architecture,
        context_length=manifest.context_length,
        digest=bundle.contents_digest,
        exact_activations=manifest.recipe_of("openvino").get("activations") == "f32",
    )
    path = bundle.file(manifest.formats["openvino"])
    return lambda: read_ir(path), facts


def _gguf(model: GgufModel, q4_k_minima: str) -> tuple[Callable[[], Any], Facts]:
    if len(model.weight_files) > 1:
        raise UnsupportedModelError(
            f"{model} is one part of a split model, which OpenVINO does not read. Join the parts with llama.cpp's "
            "gguf-split --merge, or leave the engine out: others open them as they are."
        )
    shape = decoder_shape(model.file)  # so that OpenVINO never sees a damaged header
    facts = Facts(
        name=str(model),
        architecture=shape.architecture,
        context_length=shape.context_length,
        digest=model.digest,
        settings=f"-q4_k_{q4_k_minima}",
    )
    return lambda: read_gguf_graph(model.file, shape, q4_k_minima), facts
