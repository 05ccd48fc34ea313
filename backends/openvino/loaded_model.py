"""A decoder compiled by OpenVINO: what sessions over it share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ...runtime.errors import UnsupportedModelError
from ...runtime.interfaces import ModelInfo
from ...runtime.leaving import in_engine
from ..common.weights import still_open
from .block_pool import BlockPool, BlockShape
from .graph import add_queries, attentions, reason, score_scale, sliding_windows, weight_group
from .options import QUANTIZED, OpenVinoOptions
from .request import Request


class Facts(BaseModel):
    """What the graph does not say."""

    name: str
    architecture: str
    context_length: int
    digest: str
    settings: str = ""
    exact_activations: bool = False  # where the user does not say
    window: int | None = None  # of some layers, as the settings say


class OvModel:
    """A compiled graph, and the pool of blocks that all its sequences share.

    The graph with queries as outputs is compiled when something is observed that needs them, with weights of its own.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        facts: Facts,
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
        found = sliding_windows(model)
        context_length = facts.context_length
        if facts.window and not any(found):  # attention over blocks was not told of it: within the window it is right
            context_length = min(context_length, facts.window)
        self.windows = tuple(w if w < context_length else 0 for w in found)
        self.scale = score_scale(model)
        asked = 0 if options.dynamic_quantization is None and facts.exact_activations else options.dynamic_quantization
        self._activation_group = weight_group(model) if asked is None else asked
        self._compiled: Any = self._compile(model)
        self._observing: Any = None
        self.pool = BlockPool([self._block(i, kind) for i in range(len(layers)) for kind in ("key", "value")])
        self.info = ModelInfo(
            architecture=facts.architecture,
            vocab_size=model.output("logits").get_partial_shape()[1].get_length(),
            context_length=context_length,
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
        still_open(self._compiled)

    def _compile(self, model: Any) -> Any:
        keys, values = self._cache
        settings = engine_settings(self._options.precision, self._threads, self._activation_group)
        settings |= {"KEY_CACHE_PRECISION": keys, "VALUE_CACHE_PRECISION": values}
        if keys in QUANTIZED:  # by channel a block's scales would depend on how its tokens arrived
            settings["KEY_CACHE_QUANT_MODE"] = "BY_TOKEN"
        return compiled(model, self._name, settings)

    def _block(self, layer: int, kind: str) -> BlockShape:
        port = self._compiled.input(f"{kind}_cache.{layer}")
        heads, entries, row = (port.get_partial_shape()[i].get_length() for i in (1, 2, 3))
        return BlockShape(port.get_element_type(), heads, entries, row, port.get_element_type().bitwidth)


def engine_settings(precision: str, threads: int, group: int) -> dict[str, object]:
    """Settings that every graph is compiled with. group: so many activations are rounded together; 0: none are."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        "SNIPPETS_MODE": "DISABLE",  # attention fused by it is kept in a cache without a lock: docs/openvino.md
    }


def compiled(model: Any, name: str, settings: Mapping[str, object]) -> Any:
    """A graph made ready to run. Raises UnsupportedModelError."""
    import openvino

    try:
        with in_engine:
            return openvino.Core().compile_model(model, "CPU", dict(settings))
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"OpenVINO cannot run {name} with these settings: {reason(error)}. Open it with another engine."
        ) from error
