"""Which engine can do what another one cannot: the runtime names the ability, and who has it is said here."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.errors import AbilityError
from ..runtime.interfaces import Ability, ModelInfo

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


def with_way_out(error: AbilityError, info: ModelInfo) -> AbilityError:
    """The error with the engines, devices and settings that have what is missing; the error itself where none is known
    to have it. info: of the model that answers."""
    able = [words for offer in _OFFERS if (words := _words(offer, error, info))]
    if not error.missing or not able:
        return error
    said = f"{', '.join(able[:-1])} and {able[-1]}" if len(able) > 1 else able[0]
    return AbilityError(f"{error} {said[0].upper()}{said[1:]} can.", engine=error.engine, missing=error.missing)


def _words(offer: _Offer, error: AbilityError, info: ModelInfo) -> str:
    """How to have what is missing with this engine; empty where it does not have it."""
    has = error.missing | ({"encode"} if info.encoder is not None else frozenset()) <= offer.has
    if offer.engine != error.engine:
        return offer.words if has else ""
    if error.missing <= offer.by_setting:
        return offer.words
    return f"{offer.words} on the device cpu" if has and info.device != "cpu" else ""
