"""A bundle's graphs in ONNX Runtime: what sessions over them share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ...runtime.errors import ModelFileError
from ...runtime.files.bundle import Bundle
from ...runtime.interfaces import Floats, ModelInfo
from ..common.environment import environment
from ..common.weights import still_open
from .devices import DEVICES, create_session, shapes_of
from .encoder import OrtEncoder
from .int8_cache import eight_bit_graph, stored_as

# The tiled ("flash") kernel of the CPU leaves one row over where a width is one more than a multiple of its tile, 2
# head_dim rows, and gives it the bits of a step of one row. Measured: without tiles steps are as fast.
NO_TILES = "ORT_GQA_DISABLE_FLASH_ATTENTION"
TWO_ROWS = 2  # attention of one row has bits of its own, which int8 activations round away in all but some tokens
_OBSERVING = "observing.onnx"  # beside the model: the same weights with one more output per layer
_EXPECTED = {"input_ids", "position_ids", "logit_rows", "bias", "past_key_0", "past_value_0", "logits", "hidden"}


class OrtModel:
    """An inference session of ONNX Runtime; opened a second time, with queries as outputs, if they are observed.

    scales: of a cache in int8, see channel_scales(); None is one in f32.
    """

    def __init__(self, bundle: Bundle, device: str, threads: int, scales: Floats | None = None) -> None:
        import onnxruntime

        if "onnx" not in bundle.manifest.formats:
            raise ModelFileError(f"{bundle} holds no ONNX model; it holds {', '.join(bundle.manifest.formats)}.")
        self.ort = onnxruntime
        self._bundle, self._threads = bundle, threads
        self._device, self.scales = DEVICES[device], scales
        model = bundle.manifest.formats["onnx"]
        self._beside = PurePosixPath(model).parent
        self._plain: Any = self._create(model)
        self._observing: Any = None
        shapes = shapes_of(self._plain, bundle.path / model)
        missing = _EXPECTED - set(shapes)
        if missing:
            raise ModelFileError(
                f"{bundle.path / model} is no decoder graph of Pilotfish: it has no {', '.join(sorted(missing))}. "
                "Build the bundle again from its source."
            )

        def size(name: str, axis: int) -> int:
            sizes = shapes[name]
            if axis >= len(sizes) or not isinstance(sizes[axis], int) or sizes[axis] < 1:
                raise ModelFileError(f"{bundle.path / model} is damaged: its {name} has the shape {sizes}.")
            return int(sizes[axis])

        self._encoder = self._open_encoder(frozenset(shapes))
        self.relative = "entry_positions" in shapes
        self.observes = str(self._beside / _OBSERVING) in bundle.manifest.files
        # Of each array of a cache, keys and values of a layer in turn: heads and their length, and the outputs that are
        # bound to the same memory: its own, and those of layers that attend to what it keeps.
        arrays = [f"{kind}_{i}" for i in range(_kept(shapes)) for kind in ("key", "value")]
        self.cache = [(size(f"past_{x}", 1), size(f"past_{x}", 3)) for x in arrays]
        self.outputs = [[name for name in shapes if re.fullmatch(rf"present_{x}(_\d+)?", name)] for x in arrays]
        self.even = len(set(self.cache)) == 1 and all(len(names) == 1 for names in self.outputs)
        recipe, kv_heads = bundle.manifest.recipe, size("past_key_0", 1)
        n_heads = recipe.get("n_heads", str(kv_heads))
        if not n_heads.isdecimal() or not int(n_heads) or any(int(n_heads) % heads for heads, _ in self.cache):
            raise ModelFileError(f"{bundle} is damaged: it has {n_heads} heads over {kv_heads} of keys.")
        self.window = _window(recipe, "sliding_bias" in shapes, bundle.path)
        self.info = ModelInfo(
            architecture=bundle.manifest.architecture,
            vocab_size=size("logits", 1),
            context_length=bundle.manifest.context_length,
            n_layers=sum(map(len, self.outputs)) // 2,
            n_heads=int(n_heads),
            kv_heads=kv_heads,
            head_dim=size("past_key_0", 3),
            hidden_size=size("hidden", 1),
            engine="onnx",
            engine_version=str(onnxruntime.__version__),
            device=device,
            threads=threads,
            digest=bundle.contents_digest,
            settings=" ".join(x for x in (recipe.get("activations", ""), stored_as(scales)) if x),
            encoder=None if self._encoder is None else self._encoder.info,
            uneven=not self.even,
            alike_from=TWO_ROWS,
        )

    def _create(self, model: str) -> Any:
        spinning = {"session.intra_op.allow_spinning": "1"}
        with environment(NO_TILES, "1"):
            path = self._bundle.path / model
            graph = None if self.scales is None else eight_bit_graph(path, self.scales)
            return create_session(path, self._device, self._threads, settings=spinning, optimize=False, graph=graph)

    def _open_encoder(self, decoder: frozenset[str]) -> OrtEncoder | None:
        manifest = self._bundle.manifest
        name = manifest.encoders.get("onnx")
        if name is not None:
            return OrtEncoder(self._create(name), self._bundle.path / name, manifest, decoder)
        if any(input_name.startswith("cross_") for input_name in decoder):
            raise ModelFileError(
                f"{self._bundle} holds half of an encoder-decoder model: its decoder needs an encoder. "
                "Build the bundle again from its source."
            )
        return None

    def encoder(self) -> OrtEncoder:
        """What reads the source."""
        return still_open(self._encoder)

    def runner(self, observing: bool) -> Any:
        """The inference session for steps with or without queries as outputs."""
        self.check_open()
        if not observing:
            return self._plain
        if self._observing is None:
            self._observing = self._create(str(self._beside / _OBSERVING))
        return self._observing

    def close(self) -> None:
        self._plain = self._observing = self._encoder = None

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        still_open(self._plain)


def _kept(names: Iterable[str]) -> int:
    """How many layers keep keys and values."""
    return sum(name.startswith("past_key_") for name in names)


def _window(recipe: Mapping[str, str], has_input: bool, folder: Path) -> int | None:
    """How many positions back layers with a window see, their own included; None where there are none."""
    stated = recipe.get("sliding_window", "")
    if has_input == bool(stated) and (not stated or (stated.isdecimal() and int(stated))):
        return int(stated) if stated else None
    raise ModelFileError(
        f"{folder} is damaged: its graph {'wants' if has_input else 'has no place for'} a window of attention, and its "
        f"manifest says {stated or 'nothing'!r}. Build the bundle again from its source."
    )
