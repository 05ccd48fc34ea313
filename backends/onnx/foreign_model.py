"""A decoder graph made elsewhere in ONNX Runtime: its inputs and outputs by name, and what its sessions can do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import EngineError, ModelFileError, OptionError, UnsupportedModelError
from ...runtime.files.onnx_folder import OnnxFolder
from ...runtime.interfaces import Ability, Floats, ModelInfo, Tokens
from ...runtime.leaving import in_engine
from ...runtime.profiling.canary import TEXT, Canary, canary_at_once
from ..common.environment import environment
from ..common.weights import still_open
from .devices import DEVICES, create_session, shapes_of
from .foreign_cache import Copied, ForeignCache, InPlace
from .foreign_graph import attention_of
from .loaded_model import NO_TILES, TWO_ROWS

Array = npt.NDArray[np.generic]
_KINDS: Mapping[str, tuple[str, type[np.generic]]] = {
    "tensor(float)": ("f32", np.float32),
    "tensor(float16)": ("f16", np.float16),
}
_BRANCH, _KEPT_ROWS = "use_cache_branch", "num_logits_to_keep"  # further inputs that some exporters add
_MOST_LAYERS = 1000
_ABILITIES: frozenset[Ability] = frozenset({"keys", "fork", "save"})


class ForeignModel:
    """An inference session over a folder's graph; what a step takes and gives, put together by name.

    threads: of a step. Raises ModelFileError, UnsupportedModelError, OptionError and EngineMissingError.
    """

    def __init__(self, folder: OnnxFolder, threads: int, kv_dtype: str | None) -> None:
        import onnxruntime

        self.ort, self._names, self._path = onnxruntime, folder.names, folder.graph
        spinning = {"session.intra_op.allow_spinning": "1"}
        with environment(NO_TILES, "1"):
            self._session: Any = create_session(self._path, DEVICES["cpu"], threads, settings=spinning)
        self._shapes = shapes_of(self._session, self._path)
        ports = (*self._session.get_inputs(), *self._session.get_outputs())
        self._types = {port.name: str(port.type) for port in ports}
        self._inputs = frozenset(port.name for port in self._session.get_inputs())
        names = self._names
        n_layers = next(i for i in range(_MOST_LAYERS) if names.past_key % i not in self._inputs)
        self._check(n_layers)
        self._logits_kind = self._kind(names.logits)[1]
        stored, self.cache_kind = self._kind(names.past_key % 0)
        if kv_dtype not in (None, stored):
            raise OptionError(
                f"the graph of {folder} stores keys and values in {stored}, not in {kv_dtype!r}; leave kv_dtype out."
            )
        self._attention = attention = attention_of(self._path, n_layers)
        kv_heads = self._size(names.past_key % 0, 1, folder, "num_key_value_heads", "num_attention_heads")
        head_dim = self._size(names.past_key % 0, 3, folder, "head_dim")
        vocab_size = self._size(names.logits, 2, folder, "vocab_size")
        folder.require_sizes({"num_hidden_layers": n_layers, "num_key_value_heads": kv_heads, "vocab_size": vocab_size})
        # A window is counted in entries, and where attention itself rotates keys, so are positions.
        free = names.position_ids in self._inputs and not attention.rotates
        whole = folder.window is None and attention.window is None
        context_length = folder.context_length
        if attention.in_place and attention.window is None and folder.window is not None:
            context_length = min(context_length, folder.window)  # attention was not told of it: within, it is right
        self.abilities: frozenset[Ability] = _ABILITIES | ({"evict_tokens"} if free and whole else frozenset())
        self.info = ModelInfo(
            architecture=folder.architecture,
            vocab_size=vocab_size,
            context_length=context_length,
            n_layers=n_layers,
            n_heads=attention.n_heads or folder.size("num_attention_heads"),
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden_size=folder.size("hidden_size"),
            engine="onnx",
            engine_version=str(onnxruntime.__version__),
            device="cpu",
            threads=threads,
            digest=folder.digest,
            settings=f"{'in-place' if attention.in_place else 'copied'}-cache-{stored}",
            alike_from=TWO_ROWS,
        )

    def new_cache(self) -> ForeignCache:
        """Keys and values of a session."""
        info, names = self.info, self._names
        pairs = [
            (past % i, present % i)
            for i in range(info.n_layers)
            for past, present in ((names.past_key, names.present_key), (names.past_value, names.present_value))
        ]
        if self._attention.in_place:
            return InPlace(self.ort, pairs, self.cache_kind, info.kv_heads, info.head_dim, self._attention.window or 1)
        return Copied(self.ort, pairs, self.cache_kind, info.kv_heads, info.head_dim)

    def step(self, ids: Tokens, positions: Tokens, n_past: int, cache: ForeignCache) -> Floats:
        """Logits of all rows, (n, vocab_size). Raises EngineError and NoMemoryError."""
        self.check_open()
        binding, n = self._session.io_binding(), len(ids)
        cache.bind(binding, n_past, n)
        given = self._given(ids, positions, n_past)
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        logits = np.empty((1, n, self.info.vocab_size), dtype=self._logits_kind)
        binding.bind_ortvalue_output(self._names.logits, self.ort.OrtValue.ortvalue_from_numpy(logits))
        with _engine_errors():
            self._session.run_with_iobinding(binding)
        cache.ran(n_past + n)
        found: Floats = logits[0].astype(np.float32, copy=False)
        return found

    def own_answer(self, text: Tokens) -> Canary | None:
        """What the graph answers to a text that it reads at once, with nothing cached."""
        return canary_at_once(text, lambda tokens: self.step(tokens, np.arange(len(tokens)), 0, self.new_cache()))

    def close(self) -> None:
        self._session = None

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        still_open(self._session)

    def _given(self, ids: Tokens, positions: Tokens, n_past: int) -> dict[str, Array]:
        """What a step is given besides its past."""
        names, n = self._names, len(ids)
        given: dict[str, Array] = {
            names.input_ids: ids[None],
            names.attention_mask: np.ones((1, n_past + n), dtype=np.int64),
            names.position_ids: positions[None],
            _BRANCH: np.ones(1, dtype=bool),
            _KEPT_ROWS: np.array(n, dtype=np.int64),
        }
        return {
            name: np.ascontiguousarray(x.astype(np.int32) if self._types[name] == "tensor(int32)" else x)
            for name, x in given.items()
            if name in self._inputs
        }

    def _check(self, n_layers: int) -> None:
        """Raise UnsupportedModelError for a graph that is no decoder as it is known here."""
        names = self._names
        if not n_layers:
            raise UnsupportedModelError(
                f"{self._path} takes no past ({names.past_key % 0}). Export it with one: "
                "optimum-cli export onnx --task text-generation-with-past"
            )
        layers = [name % i for i in range(n_layers) for name in (names.past_key, names.past_value)]
        known = {names.input_ids, names.attention_mask, names.position_ids, _BRANCH, _KEPT_ROWS, *layers}
        needed = {names.input_ids, names.logits, names.present_key % (n_layers - 1), *layers}
        more, missing = sorted(self._inputs - known), sorted(needed - self._shapes.keys())
        why = f"wants {', '.join(more)}, too" if more else f"has no {', '.join(missing)}" if missing else ""
        past = self._shapes.get(names.past_key % 0, [])
        if not why and (len(past) != 4 or isinstance(past[2], int)):
            why = f"keeps its past in the shape {past}, which cannot grow"
        logits = self._shapes.get(names.logits, [])
        if not why and (len(logits) != 3 or logits[1] == 1):
            why = "gives logits of the last token alone"
        if why:
            raise UnsupportedModelError(
                f"{self._path} is no decoder of texts as optimum and onnxruntime-genai write it for the cpu: it {why}. "
                "Take a .gguf file of the model, or export its weights (pilotfish export)."
            )

    def _kind(self, name: str) -> tuple[str, type[np.generic]]:
        if self._types[name] not in _KINDS:
            raise UnsupportedModelError(
                f"{self._path} has {name} as {self._types[name]}, and the onnx engine runs graphs with f32 and f16."
            )
        return _KINDS[self._types[name]]

    def _size(self, name: str, axis: int, folder: OnnxFolder, *settings: str) -> int:
        """A size that the graph says, or else the settings."""
        found = self._shapes[name][axis]
        if isinstance(found, int):
            if found < 1:
                raise ModelFileError(f"{self._path} is damaged: its {name} has the shape {self._shapes[name]}.")
            return found
        return folder.size(*settings)


@contextlib.contextmanager
def _engine_errors() -> Iterator[None]:
    """What runs inside is ONNX Runtime: what it raises becomes an EngineError."""
    try:
        with in_engine:
            yield
    except Exception as error:  # it raises classes of its own that derive from nothing but Exception
        raise EngineError(f"ONNX Runtime failed: {error}") from error


def own_answer(folder: OnnxFolder) -> Canary | None:
    """What the graph answers as it is, on one thread."""
    model = ForeignModel(folder, 1, None)
    try:
        return model.own_answer(folder.tokenizer.encode(TEXT))
    finally:
        model.close()
