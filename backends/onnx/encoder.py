"""The encoder graph of a bundle in ONNX Runtime, which is run once for a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.errors import EngineError, ModelFileError
from ...runtime.files.manifest import Manifest
from ...runtime.interfaces import EncoderInfo, Floats, Tokens
from ...runtime.leaving import in_engine
from .devices import shapes_of

_TEXT, _SOUND = "source_ids", "source_features"


class OrtEncoder:
    """The encoder graph of a bundle.

    runner: its inference session; decoder: names of the decoder's inputs.
    """

    def __init__(self, runner: Any, path: Path, manifest: Manifest, decoder: frozenset[str]) -> None:
        shapes = shapes_of(runner, path)
        self.crossed = sorted(name for name in shapes if name.startswith(("cross_key_", "cross_value_")))
        self._input = _SOUND if manifest.source_kind == "audio" else _TEXT
        wanted = sorted(name for name in decoder if name.startswith("cross_"))
        if self._input not in shapes or not wanted or wanted != self.crossed:
            raise ModelFileError(
                f"{path} is no encoder for the decoder beside it: it takes {self._input} and gives "
                f"{', '.join(wanted) or 'cross_key_<l> and cross_value_<l>'}, or should. Build the bundle again."
            )
        if not manifest.decoder_start:
            raise ModelFileError(
                f"{path.parent} does not say what its answers begin with (decoder_start). Build the bundle again."
            )
        bins, frames = shapes[_SOUND][1:] if self._input == _SOUND else (None, None)
        limit = frames if isinstance(frames, int) else manifest.source_limit
        self.info = EncoderInfo(manifest.decoder_start, limit, manifest.source_kind, bins)
        self._runner = runner

    def read(self, source: Tokens | Floats) -> list[tuple[str, Any]]:
        """Keys and values of the source by the names of the decoder's inputs."""
        try:
            binding = self._runner.io_binding()
            binding.bind_cpu_input(self._input, source[None])
            for name in self.crossed:
                binding.bind_output(name)
            with in_engine:
                self._runner.run_with_iobinding(binding)
            return list(zip(self.crossed, binding.get_outputs(), strict=True))
        except Exception as error:  # ONNX Runtime raises classes of its own that derive from nothing but Exception
            raise EngineError(f"ONNX Runtime failed at the encoder: {error}") from error
