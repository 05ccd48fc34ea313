"""OpenVINO: decoders with PagedAttention over our own block tables, from an IR or straight from a GGUF file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...runtime.errors import EngineError, ModelFileError, OptionError, UnsupportedModelError
from ...runtime.files.bundle import Bundle, open_bundle
from ...runtime.files.decoder_shape import decoder_shape
from ...runtime.files.gguf_file import read_gguf
from ...runtime.interfaces import ModelInfo, Weights
from ...runtime.leaving import in_engine
from ...runtime.storage import file_digest
from ...runtime.telemetry import without_telemetry
from .. import require, usable
from ..common.packages import package_version, problem_of
from ..fixed_shapes.shapes import FORMAT
from ..protocol import NO_OPTIONS
from .block_pool import BlockPool, BlockShape
from .encoder_decoder import OvEncoderDecoderWeights, check_source_options
from .fixed_shapes import NOTES, ladder_of, open_static, static_devices
from .gguf_graph import read_gguf_graph
from .graph import add_queries, attentions, read_ir, reason, sliding_windows, weight_group
from .request import Request
from .session import OvSession

_PLAIN = ("f32", "f16", "bf16")  # of a cache; keys and values alike
_QUANTIZED = ("u8", "u4")  # keys and values may differ
_DEFAULT_CACHE = {"f32": "f16", "f16": "f16", "bf16": "bf16"}  # by precision


class OpenVinoOptions(BaseModel):
    """Settings of this engine alone.

    precision: in which activations are computed; bf16 and f16 are faster where the processor has them, and not exact.
    dynamic_quantization: activations are rounded to int8 in groups of so many before they meet quantized weights;
        None is what a bundle's recipe says, else the group of the weights, the fastest; 0 is off, which is slower and
        closer to the weights as they are.
    q4_k_minima: those of Q4_K blocks in GGUF files, as they are ("f16") or rounded to multiples of the block's scale
        ("integer"), which is faster for some widths and further off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["f32", "bf16", "f16"] = "f32"
    dynamic_quantization: int | None = Field(None, ge=0, multiple_of=16, le=1 << 16)
    q4_k_minima: Literal["f16", "integer"] = "f16"


class OvBackend:
    """The fastest to verify on a CPU; wheels only, no compiler, no torch."""

    name = "openvino"
    install = "pip install 'pilotfish[openvino]'"

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

    def check(self, device: str | None, kv_dtype: str | None, options: Mapping[str, object]) -> None:
        if device in NOTES:
            if kv_dtype not in (None, "f32"):
                raise OptionError(f"the openvino engine on {device} stores its cache in f32 only, not {kv_dtype!r}.")
            ladder_of(device, options)
            return
        chosen = _options(options)
        if device not in (None, "cpu"):
            raise OptionError(f"the openvino engine runs models on cpu so far, not on {device!r}.")
        _cache_types(kv_dtype, chosen.precision)

    def open(
        self,
        path: Path,
        *,
        device: str | None,
        threads: int,
        kv_dtype: str | None,
        options: Mapping[str, object] = NO_OPTIONS,
    ) -> Weights:
        require(self)
        self.check(device, kv_dtype, options)
        if device in NOTES:
            return open_static(path, device, threads, options)
        chosen = _options(options)
        if path.is_dir() and "openvino" in (bundle := open_bundle(path)).manifest.encoders:
            return _open_encoder_decoder(bundle, chosen, threads, kv_dtype, str(self.version()))
        cache = _cache_types(kv_dtype, chosen.precision)
        read, facts = _bundle(path) if path.is_dir() else _gguf(path, chosen.q4_k_minima)
        return OvWeights(read, facts, chosen, cache, threads, str(self.version()))


BACKEND = OvBackend()


def _listed() -> list[str]:
    """Devices as OpenVINO lists them, in lower case."""
    import openvino

    return [device.lower() for device in openvino.Core().available_devices]


def _options(options: Mapping[str, object]) -> OpenVinoOptions:
    try:
        return OpenVinoOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(f"{n}={field.default!r}" for n, field in OpenVinoOptions.model_fields.items())
        raise OptionError(f"the openvino engine: {name}: {first['msg']}. Its options are {known}.") from error


def _cache_types(kv_dtype: str | None, precision: str) -> tuple[str, str]:
    """Types of keys and values."""
    keys, _, values = (kv_dtype or _DEFAULT_CACHE[precision]).partition("/")
    values = values or keys
    plain = keys in _PLAIN and keys == values and ("bf16" in (keys, precision)) <= (keys == precision)
    if plain or (keys in _QUANTIZED and values in _QUANTIZED):
        return keys, values
    raise OptionError(
        f"the openvino engine cannot store its cache in {kv_dtype!r} with precision {precision}; it has f32, f16, u8 "
        "and u4, and keys and values apart: u8/u4, u4/u8. With precision bf16 it has bf16 in place of f32 and f16."
    )


class _Facts(BaseModel):
    """What the graph does not say."""

    name: str
    architecture: str
    context_length: int
    digest: str
    settings: str = ""
    exact_activations: bool = False  # where the user does not say


def _bundle(folder: Path) -> tuple[Callable[[], Any], _Facts]:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if "openvino" not in manifest.formats:
        raise ModelFileError(f"{folder} holds no OpenVINO model; it holds {', '.join(manifest.formats)}.")
    facts = _Facts(
        name=str(folder),
        architecture=manifest.architecture,
        context_length=manifest.context_length,
        digest=_digest(bundle),
        exact_activations=manifest.recipe_of("openvino").get("activations") == "f32",
    )
    path = bundle.file(manifest.formats["openvino"])
    return lambda: read_ir(path), facts


def _digest(bundle: Bundle) -> str:
    digests = (fact.sha256 for _, fact in sorted(bundle.manifest.files.items()))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _open_encoder_decoder(
    bundle: Bundle, options: OpenVinoOptions, threads: int, kv_dtype: str | None, version: str
) -> OvEncoderDecoderWeights:
    check_source_options(kv_dtype, options.precision)

    def compiled(model: Any, group: int) -> Any:
        return _compiled(model, str(bundle.folder), _settings(options.precision, threads, group))

    asked = options.dynamic_quantization
    return OvEncoderDecoderWeights(bundle, compiled, asked, digest=_digest(bundle), threads=threads, version=version)


def _settings(precision: str, threads: int, group: int) -> dict[str, object]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        "SNIPPETS_MODE": "DISABLE",  # attention fused by it is kept in a cache without a lock: docs/openvino.md
    }


def _compiled(model: Any, name: str, settings: Mapping[str, object]) -> Any:
    """A graph made ready to run. Raises UnsupportedModelError."""
    import openvino

    try:
        with in_engine:
            return openvino.Core().compile_model(model, "CPU", dict(settings))
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"OpenVINO cannot run {name} with these settings: {reason(error)}. Open it with another engine."
        ) from error


def _gguf(path: Path, q4_k_minima: str) -> tuple[Callable[[], Any], _Facts]:
    shape = decoder_shape(read_gguf(path))  # so that OpenVINO never sees a damaged header
    facts = _Facts(
        name=str(path),
        architecture=shape.architecture,
        context_length=shape.context_length,
        digest=file_digest(path),
        settings=f"-q4_k_{q4_k_minima}",
    )
    return lambda: read_gguf_graph(path, shape, q4_k_minima), facts


class OvWeights:
    """A compiled graph, and the pool of blocks that all its sequences share.

    The graph with queries as outputs is compiled when something is observed that needs them, with weights of its own.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        facts: _Facts,
        options: OpenVinoOptions,
        cache: tuple[str, str],
        threads: int,
        version: str,
    ) -> None:
        self._read, self._name, self._cache, self._options, self._threads = read, facts.name, cache, options, threads
        model = read()
        layers = attentions(model)
        kv_heads, head_dim = (layers[0].get_rt_info()[name].value for name in ("num_k_heads", "k_head_size"))
        self.kv_dtype = "/".join(dict.fromkeys(cache))
        self.readable_cache = cache[0] in ("f32", "f16")
        self.windows = tuple(w if w < facts.context_length else 0 for w in sliding_windows(model))
        self.scale = float(layers[0].input_value(9).get_node().get_data())
        asked = 0 if options.dynamic_quantization is None and facts.exact_activations else options.dynamic_quantization
        self._activation_group = weight_group(model) if asked is None else asked
        self._compiled: Any = self._compile(model)
        self._observing: Any = None
        self.pool = BlockPool([self._block(i, kind) for i in range(len(layers)) for kind in ("key", "value")])
        self.info = ModelInfo(
            architecture=facts.architecture,
            vocab_size=model.output("logits").get_partial_shape()[1].get_length(),
            context_length=facts.context_length,
            n_layers=len(layers),
            n_heads=layers[0].get_input_partial_shape(0)[1].get_length() // head_dim,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden_size=model.output("hidden").get_partial_shape()[1].get_length(),
            engine="openvino",
            engine_version=version,
            device="cpu",
            threads=threads,
            digest=facts.digest,
            settings=f"{options.precision}-cache_{self.kv_dtype}-dq{self._activation_group}{facts.settings}",
        )

    def session(self, max_context: int | None = None) -> OvSession:
        self.check_open()
        limit = self.info.context_length
        wanted = limit if max_context is None else max_context
        if not 1 <= wanted <= limit:
            raise OptionError(f"max_context is {wanted}, but this model was trained for 1..{limit} tokens.")
        return OvSession(self, wanted)

    def request(self, observing: bool = False) -> Request:
        """An infer request of the graph with or without queries as outputs."""
        self.check_open()
        if observing and self._observing is None:
            model = self._read()
            add_queries(model)
            self._observing = self._compile(model)
        return Request(self._observing if observing else self._compiled, self.pool, self.info.vocab_size)

    def close(self) -> None:
        self._compiled = self._observing = None

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        if self._compiled is None:
            raise EngineError("these weights are closed; load the model again.")

    def _compile(self, model: Any) -> Any:
        keys, values = self._cache
        settings = _settings(self._options.precision, self._threads, self._activation_group)
        settings |= {"KEY_CACHE_PRECISION": keys, "VALUE_CACHE_PRECISION": values}
        if keys in _QUANTIZED:  # by channel a block's scales would depend on how its tokens arrived
            settings["KEY_CACHE_QUANT_MODE"] = "BY_TOKEN"
        return _compiled(model, self._name, settings)

    def _block(self, layer: int, kind: str) -> BlockShape:
        port = self._compiled.input(f"{kind}_cache.{layer}")
        heads, entries, row = (port.get_partial_shape()[i].get_length() for i in (1, 2, 3))
        return BlockShape(port.get_element_type(), heads, entries, row, port.get_element_type().bitwidth)
