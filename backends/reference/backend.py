"""The reference engine: decoders in plain numpy f32, straight from a GGUF file or a folder of safetensors.

The judge of right answers: slow and readable.
"""

from __future__ import annotations

import numpy as np

from ...runtime.errors import OptionError
from ...runtime.files.model_file import ModelFile
from ...runtime.files.open_model import decoder_of
from ...runtime.install import install_command
from ...runtime.interfaces import Weights
from ..common.weights import LoadedWeights
from ..protocol import NO_OPTIONS, Options
from .loaded_model import ReferenceModel
from .session import ReferenceSession


class ReferenceBackend:
    """Always installed; picked only by name."""

    name = "reference"

    @property
    def install(self) -> str:
        return install_command()

    def version(self) -> str | None:
        return np.__version__

    def problem(self) -> str | None:
        return None

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def notes(self) -> dict[str, str]:
        return {}

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        return ("gguf", "safetensors")

    def check(self, device: str | None, kv_dtype: str | None, options: Options) -> None:
        if not options.keys() <= {"stream"}:
            raise OptionError(f"the reference engine has the option stream only, but {', '.join(options)} were given.")
        if device not in (None, "cpu"):
            raise OptionError(f"the reference engine runs on cpu only, not on {device!r}.")
        if kv_dtype not in (None, "f32"):
            raise OptionError(f"the reference engine stores its cache in f32 only, not {kv_dtype!r}.")

    def open(
        self, model: ModelFile, *, device: str | None, threads: int, kv_dtype: str | None, options: Options = NO_OPTIONS
    ) -> Weights:
        self.check(device, kv_dtype, options)
        decoder = decoder_of(model)
        opened = ReferenceModel(decoder.file, decoder.digest, stream=bool(options.get("stream")))
        return LoadedWeights(opened, ReferenceSession)


BACKEND = ReferenceBackend()
