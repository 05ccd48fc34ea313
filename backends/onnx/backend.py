"""ONNX Runtime: runs the decoder graph of docs/onnx-graph.md with bound memory and one growing cache."""

from __future__ import annotations

from ...runtime.errors import OptionError, PilotfishError
from ...runtime.files.model_file import ModelFile
from ...runtime.files.onnx_folder import OnnxFolder
from ...runtime.files.open_model import bundle_of
from ...runtime.install import install_command
from ...runtime.interfaces import Weights
from ...runtime.profiling.canary import Canary
from .. import require, usable
from ..common.kv_rows import WHY_ONE_SIZE
from ..common.packages import package_version, problem_of
from ..common.weights import LoadedWeights
from ..protocol import NO_OPTIONS, Options, refuse_options
from .devices import DEVICES, find, present
from .encoder_decoder import OrtEncoderDecoderSession
from .fixed_shapes import open_static, static_options
from .foreign_model import ForeignModel, own_answer
from .foreign_session import ForeignSession
from .int8_cache import channel_scales, check_kv_dtype
from .loaded_model import OrtModel
from .partial_attention import OrtAttendingSession


class OrtBackend:
    """The embedded default engine: wheels only, no compiler, no torch."""

    name = "onnx"

    @property
    def install(self) -> str:
        return install_command("onnx")

    def version(self) -> str | None:
        return package_version("onnxruntime")

    def problem(self) -> str | None:
        return problem_of(self.name, "onnxruntime", present)

    def devices(self) -> tuple[str, ...]:
        return present() if usable(self) else ()

    def notes(self) -> dict[str, str]:
        return {name: DEVICES[name].note for name in self.devices()}

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        known = DEVICES.get(device or "cpu")
        return (known.format,) if known else ()

    def known_answer(self, model: ModelFile) -> Canary | None:
        """What a graph made elsewhere answers as it is; None for what others judge, and for what does not run."""
        try:
            return own_answer(model) if isinstance(model, OnnxFolder) else None
        except PilotfishError:
            return None

    def check(self, device: str | None, kv_dtype: str | None, options: Options) -> None:
        device = device or "cpu"
        found = find(device)
        check_kv_dtype(kv_dtype, device, False)
        if found.format != "onnx":
            static_options(device, options)
        else:
            refuse_options(self.name, options)

    def open(
        self, model: ModelFile, *, device: str | None, threads: int, kv_dtype: str | None, options: Options = NO_OPTIONS
    ) -> Weights:
        require(self)
        self.check(device, kv_dtype, options)
        device = device or "cpu"
        if find(device).format != "onnx":
            return open_static(bundle_of(model), device, threads, options)
        if isinstance(model, OnnxFolder):
            return LoadedWeights(ForeignModel(model, threads, kv_dtype), ForeignSession)
        bundle = bundle_of(model)
        if not check_kv_dtype(kv_dtype, device, "onnx" in bundle.manifest.encoders):
            return _weights(OrtModel(bundle, device, threads))
        whole = OrtModel(bundle, device, threads)
        exact = _weights(whole)
        if not whole.even:
            exact.close()
            raise OptionError(f"{WHY_ONE_SIZE}, which the onnx engine stores in f32 only. Leave out kv_dtype.")
        session = exact.session()
        scales = channel_scales(session, bundle)
        session.close()
        exact.close()
        return _weights(OrtModel(bundle, device, threads, scales))


BACKEND = OrtBackend()


def _weights(model: OrtModel) -> LoadedWeights[OrtModel]:
    """Weights whose sessions read a source where the model has an encoder."""
    return LoadedWeights(model, OrtAttendingSession if model.info.encoder is None else OrtEncoderDecoderSession)
