"""An encoder and a decoder compiled by OpenVINO, and what sessions over them share: docs/openvino.md."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...runtime.errors import EngineError, ModelFileError, UnsupportedModelError
from ...runtime.files.bundle import Bundle
from ...runtime.files.manifest import Manifest
from ...runtime.interfaces import EncoderInfo, Floats, ModelInfo, Tokens
from ...runtime.leaving import in_engine
from ..common.weights import still_open
from .graph import Model, reason, weight_group

_TEXT, _SOUND = "source_ids", "source_features"
_STEP = {"input_ids", "position_ids", "logit_rows", "bias", "entries"}
Compile: TypeAlias = Callable[[Model, int], Any]  # of a graph, with groups of so many activations


class OvEncoder:
    """The compiled encoder, which all sessions share; one at a time lets it read."""

    def __init__(self, compiled: Any, info: EncoderInfo, name: str) -> None:
        self.info = info
        self._request, self._input = compiled.create_infer_request(), name
        self._outputs = {port.any_name: i for i, port in enumerate(compiled.outputs)}
        self._turn = threading.Lock()

    def read(self, source: Tokens | Floats) -> dict[str, Floats]:
        """Keys and values of the source by the names of the decoder's inputs."""
        from openvino import Tensor

        with self._turn:
            try:
                self._request.set_tensor(self._input, Tensor(np.ascontiguousarray(source[None]), shared_memory=False))
                with in_engine:
                    self._request.start_async()
                    self._request.wait()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed at the encoder: {reason(error)}.") from error
            crossed = {name: i for name, i in self._outputs.items() if name.startswith("cross_")}
            return {name: self._request.get_output_tensor(i).data.copy() for name, i in crossed.items()}


class OvEncoderDecoderModel:
    """Both graphs compiled; the decoder a second time, with queries as outputs, when they are observed.

    compile_graph: with the settings that the engine was opened with. asked: groups of activations, or None.
    """

    def __init__(
        self, bundle: Bundle, compile_graph: Compile, asked: int | None, *, threads: int, version: str
    ) -> None:
        manifest = bundle.manifest
        self._path, self._compile = bundle.file(manifest.formats["openvino"]), compile_graph
        encoder = _read(bundle.file(manifest.encoders["openvino"]))
        decoder = _read(self._path)
        sizes = _sizes(decoder, self._path)
        found = _encoder_info(encoder, sizes, manifest, bundle.path)
        exact = manifest.recipe_of("openvino").get("activations") == "f32"
        self._group = (0 if exact else weight_group(decoder)) if asked is None else asked
        _drop_queries(decoder)
        self._plain: Any = compile_graph(decoder, self._group)
        self._observing: Any = None
        self._encoder: OvEncoder | None = OvEncoder(
            compile_graph(encoder, self._group), found, _SOUND if manifest.source_kind == "audio" else _TEXT
        )
        self.relative = "entry_positions" in sizes
        _, heads, _, head_dim = sizes["past_key_0"]
        self.info = ModelInfo(
            architecture=manifest.architecture,
            vocab_size=sizes["logits"][1],
            context_length=manifest.context_length,
            n_layers=sum(name.startswith("past_key_") for name in sizes),
            n_heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            hidden_size=sizes["hidden"][1],
            engine="openvino",
            engine_version=version,
            device="cpu",
            threads=threads,
            digest=bundle.contents_digest,
            settings=f"f32-cache_f32-dq{self._group}",
            encoder=found,
        )

    def encoder(self) -> OvEncoder:
        """What reads the source."""
        return still_open(self._encoder)

    def decoder(self, observing: bool) -> Any:
        """The compiled decoder, with or without queries as outputs."""
        self.check_open()
        if observing and self._observing is None:
            self._observing = self._compile(_read(self._path), self._group)
        return self._observing if observing else self._plain

    def close(self) -> None:
        self._plain = self._observing = self._encoder = None

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        still_open(self._plain)


def _read(path: Path) -> Model:
    import openvino

    try:
        with in_engine:
            return openvino.Core().read_model(path)
    except (RuntimeError, ValueError) as error:  # ValueError: its message quotes bytes of the file that are no text
        raise ModelFileError(f"OpenVINO cannot read {path}: {reason(error)}. Build the bundle again.") from error


def _sizes(decoder: Model, path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs and outputs by name; 0 where a size is free. Raises for another graph than a decoder of ours."""
    ports = (*decoder.inputs, *decoder.outputs)
    shapes = {name: port.get_partial_shape() for port in ports for name in port.names}
    found = {name: tuple(0 if d.is_dynamic else d.get_length() for d in dims) for name, dims in shapes.items()}
    missing = {*_STEP, "past_key_0", "past_value_0", "cross_key_0", "logits", "hidden", "new_key_0"} - set(found)
    if missing:
        raise UnsupportedModelError(
            f"{path} is no decoder of an encoder-decoder model as Pilotfish writes it: it has no "
            f"{', '.join(sorted(missing))}. Build the bundle again from its source."
        )
    if len(found["past_key_0"]) != 4 or 0 in found["past_key_0"][1::2]:
        raise ModelFileError(f"{path} is damaged: its past_key_0 has the shape {found['past_key_0']}.")
    return found


def _encoder_info(encoder: Model, decoder: dict[str, tuple[int, ...]], manifest: Manifest, folder: Path) -> EncoderInfo:
    given = {port.any_name: port.get_partial_shape() for port in (*encoder.inputs, *encoder.outputs)}
    name = _SOUND if manifest.source_kind == "audio" else _TEXT
    wanted = {x for x in decoder if x.startswith("cross_")}
    if name not in given or wanted != {x for x in given if x.startswith("cross_")}:
        raise ModelFileError(
            f"the encoder in {folder} does not go with the decoder beside it: it takes {name} and gives "
            f"{', '.join(sorted(wanted))}, or should. Build the bundle again."
        )
    if not manifest.decoder_start:
        raise ModelFileError(f"{folder} does not say what its answers begin with (decoder_start). Build it again.")
    if name == _TEXT:
        return EncoderInfo(manifest.decoder_start, manifest.source_limit)
    _, bins, frames = (d.get_length() for d in given[_SOUND])
    return EncoderInfo(manifest.decoder_start, frames, "audio", bins)


def _drop_queries(decoder: Model) -> None:
    """Without outputs that nobody looks at."""
    for result in decoder.get_results():
        if any(name.startswith("query_") for name in result.output(0).names):
            decoder.remove_result(result)
