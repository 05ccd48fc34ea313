"""llama.cpp: runs GGUF files as they are, on the processor or offloaded to a GPU, through its low-level interface."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.files.model_file import ModelFile
from ...runtime.files.open_model import gguf_of
from .. import require, usable
from ..common.weights import LoadedWeights
from ..protocol import NO_OPTIONS
from .build_command import build_command, rebuild_command
from .encoder_decoder import LlamaCppEncoderDecoderSession
from .library import gpus, version
from .load_model import Placement, named_types, parse_options
from .loaded_model import LlamaCppModel
from .probe import build_verdict
from .session import LlamaCppSession


class LlamaCppBackend:
    """The engine that opens a .gguf file as it is, and the one with the most kinds of GPU."""

    name = "llamacpp"

    @property
    def install(self) -> str:
        return build_command()

    def version(self) -> str | None:
        return version()

    def problem(self) -> str | None:
        if self.version() is None or (verdict := build_verdict()).usable:
            return None
        return f"{verdict.how} Build it anew: {rebuild_command()}"

    def devices(self) -> tuple[str, ...]:
        return ("cpu", *gpus()) if usable(self) else ()

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        return ("gguf",)

    def notes(self) -> dict[str, str]:
        """Whether the installed build survives a batch of quantized rows on this processor, and how that was found.

        Keys "verdict", "how", "system_info" and "build"; empty where the engine is not installed.
        """
        return {} if self.version() is None else build_verdict().facts()

    def check(self, device: str | None, kv_dtype: str | None, options: Mapping[str, object]) -> None:
        chosen = parse_options(dict(options))
        named_types(kv_dtype)
        if self.devices():
            Placement(device or "cpu", chosen)

    def open(
        self,
        model: ModelFile,
        *,
        device: str | None,
        threads: int,
        kv_dtype: str | None,
        options: Mapping[str, object] = NO_OPTIONS,
    ) -> LoadedWeights[LlamaCppModel]:
        chosen = parse_options(dict(options))
        require(self)
        placement = Placement(device or "cpu", chosen)
        opened = LlamaCppModel(gguf_of(model), placement, threads, kv_dtype, chosen, build_verdict())
        return LoadedWeights(opened, LlamaCppSession if opened.info.encoder is None else LlamaCppEncoderDecoderSession)


BACKEND = LlamaCppBackend()
