"""Which engine can do what another one cannot: the runtime names the ability, and who has it is said here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .. import backends
from ..runtime.errors import AbilityError, PilotfishError, UnsupportedModelError
from ..runtime.files.decoder_shape import decoder_shape
from ..runtime.files.folder_model import FolderModel
from ..runtime.files.gguf_model import GgufModel
from ..runtime.files.model_file import ModelFile
from ..runtime.interfaces import Ability, ModelInfo

_OPENS_ALL = "llamacpp"  # any .gguf file that llama.cpp runs
_COMMON: frozenset[Ability] = frozenset(
    {"tree", "evict_tokens", "attend", "keys", "queries", "attention", "hidden", "fork", "save"}
)


@dataclass(frozen=True, slots=True)
class _Offer:
    """An engine as a way out. has: what users of other engines get there; by_setting: what its own users get by the
    setting that is named, where it is missing."""

    engine: str
    words: str
    has: frozenset[Ability]
    by_setting: frozenset[Ability] = frozenset()


_OFFERS = (
    # It does not show attention, but policies compute that from queries and keys.
    _Offer("onnx", "the onnx engine", _COMMON | {"evict_heads", "encode"}),
    _Offer(
        "openvino",
        "the openvino engine with a cache in f16 or f32",
        _COMMON | {"encode"},
        by_setting=frozenset({"keys", "attention"}),
    ),
    # It shows attention and no keys: its own users are told of the setting, and nobody is sent there.
    _Offer(
        "llamacpp",
        "the llamacpp engine with options={'flash_attention': 'off'} (--option flash_attention=off)",
        frozenset(),
        by_setting=frozenset({"attention"}),
    ),
    _Offer("reference", "the reference engine", _COMMON | {"evict_heads"}),
)


def with_way_out(error: AbilityError, info: ModelInfo, model: ModelFile | None = None) -> AbilityError:
    """The error with the engines, devices and settings that have what is missing; the error itself where none is known
    to have it. info: of the model that answers; model: what it was opened from."""
    if error.missing and info.rewinds is not None:
        return AbilityError(
            f"a {info.architecture} model sums up what it has read in a state, of which nothing can be given up or "
            f"shown apart, whatever the engine ({', '.join(sorted(error.missing))}). Leave out what asks for it: "
            "cache, quality or draft='self'.",
            engine=error.engine,
            missing=error.missing,
        )
    if error.missing and info.uneven:
        return AbilityError(
            f"the layers of this {info.architecture} model keep keys and values of different sizes, or share them, so "
            f"{', '.join(sorted(error.missing))} of all layers at once are not to be had on the {info.engine} engine. "
            "Leave out what asks for it, or take a cache policy that drops whole tokens: sinks or sirllm.",
            engine=error.engine,
            missing=error.missing,
        )
    offers = [
        offer for offer in _OFFERS if offer.engine == error.engine or model is None or _opens(offer.engine, model)
    ]
    able = [words for offer in offers if (words := _words(offer, error, info))]
    if not error.missing or not able:
        return error
    said = f"{', '.join(able[:-1])} and {able[-1]}" if len(able) > 1 else able[0]
    return AbilityError(f"{error} {said[0].upper()}{said[1:]} can.", engine=error.engine, missing=error.missing)


@contextmanager
def naming_others(model: ModelFile, named: str | None) -> Iterator[None]:
    """What runs inside opens a model: an error that it is not supported names the engine that runs it, or might.

    named: the engine that the caller has named.
    """
    try:
        yield
    except UnsupportedModelError as error:
        raise _with_other_engine(error, model, named) from error


def _with_other_engine(error: UnsupportedModelError, model: ModelFile, named: str | None) -> UnsupportedModelError:
    if not isinstance(model, GgufModel) or named == _OPENS_ALL or _OPENS_ALL not in backends.names():
        return error
    opener = backends.get(_OPENS_ALL)
    if opener.version() is None:
        return UnsupportedModelError(f"{error} The {_OPENS_ALL} engine may run it; add it with: {opener.install}")
    if named is None or not _opens(_OPENS_ALL, model):
        return error  # it was among those that were tried
    return UnsupportedModelError(f"{error} The {_OPENS_ALL} engine runs it: name that one, or none.")


def _opens(engine: str, model: ModelFile) -> bool:
    """Whether an engine opens this model, as far as that can be known without loading it for good."""
    if isinstance(model, FolderModel):
        return backends.opens(backends.get(engine), model)
    if not isinstance(model, GgufModel):
        return backends.opens(backends.get(engine), model)
    try:
        if engine == _OPENS_ALL:
            return any(opener.looks(model) for opener in backends.foreign_openers())
        return bool(decoder_shape(model.file))
    except PilotfishError:
        return False


def _words(offer: _Offer, error: AbilityError, info: ModelInfo) -> str:
    """How to have what is missing with this engine; empty where it does not have it."""
    has = error.missing | ({"encode"} if info.encoder is not None else frozenset()) <= offer.has
    if offer.engine != error.engine:
        return offer.words if has else ""
    if error.missing <= offer.by_setting:
        return offer.words
    return f"{offer.words} on the device cpu" if has and info.device != "cpu" else ""
