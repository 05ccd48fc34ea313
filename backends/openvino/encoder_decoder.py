"""Encoder-decoder models on OpenVINO, opened: what they cannot be opened with, and the settings of both graphs."""

from __future__ import annotations

from typing import Any

from ...runtime.errors import OptionError
from ...runtime.files.bundle import Bundle
from ...runtime.interfaces import Weights
from ..common.weights import LoadedWeights
from .encoder_decoder_model import OvEncoderDecoderModel
from .encoder_decoder_session import OvEncoderDecoderSession
from .loaded_model import compiled, engine_settings
from .options import OpenVinoOptions


def open_encoder_decoder(
    bundle: Bundle, options: OpenVinoOptions, threads: int, kv_dtype: str | None, *, version: str
) -> Weights:
    """The encoder and the decoder of a bundle. Raises OptionError, ModelFileError and UnsupportedModelError."""
    _check_options(kv_dtype, options.precision)

    def compile_graph(model: Any, group: int) -> Any:
        return compiled(model, str(bundle.path), engine_settings(options.precision, threads, group))

    asked = options.dynamic_quantization
    model = OvEncoderDecoderModel(bundle, compile_graph, asked, threads=threads, version=version)
    return LoadedWeights(model, OvEncoderDecoderSession)


def _check_options(kv_dtype: str | None, precision: str) -> None:
    """Raise OptionError for what an encoder-decoder model cannot be opened with."""
    if kv_dtype not in (None, "f32"):
        raise OptionError(
            f"the openvino engine stores the cache of an encoder-decoder model in f32 only, not in {kv_dtype!r}."
        )
    if precision != "f32":
        raise OptionError(
            f"the openvino engine computes encoder-decoder models in f32 only, not in {precision}: their cache is "
            "stored in f32."
        )
