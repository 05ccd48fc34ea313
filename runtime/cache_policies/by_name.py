"""Policies by the name that a command line can hold: "snapkv", "snapkv:budget=512,every=128", "chunk-keydiff"."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import OptionError
from .chunk_kv import ChunkKV
from .heavy_hitters import H2O
from .key_diff import KeyDiff
from .key_norm import Knorm
from .lag_kv import LagKV
from .policy import CachePolicy
from .r_kv import RKV
from .sinks_and_window import SinksAndWindow
from .snapkv import SnapKV
from .surprise import SirLLM
from .tova import Tova

SCORERS = {kind.name: kind for kind in (Knorm, KeyDiff, LagKV, Tova, H2O, SnapKV, RKV)}
POLICIES = {kind.name: kind for kind in (SinksAndWindow, SirLLM)} | SCORERS
_CHUNK = "chunk-"
_SWITCH = {"true": True, "false": False}


def policy_by_name(text: str) -> CachePolicy:
    """The policy that a text describes: a name, then perhaps a colon and settings NAME=VALUE with commas between.

    "chunk-" before a scorer's name wraps it in ChunkKV. Raises OptionError for unknown names and impossible values.
    """
    name, _, given = text.partition(":")
    chunked = name.startswith(_CHUNK)
    kinds = SCORERS if chunked else POLICIES
    kind: Any = kinds.get(name.removeprefix(_CHUNK))
    if kind is None:
        chunks = f"; of {', '.join(SCORERS)} whole chunks with {_CHUNK} before the name"
        raise OptionError(f"there is no cache policy {name!r}; there are {', '.join(POLICIES)}{chunks}.")
    types = {f.name: type(f.default) for f in dataclasses.fields(kind)} | ({"size": int} if chunked else {})
    settings = dict(_setting(pair, types, name) for pair in given.split(",") if given)
    size = {"size": settings.pop("size")} if "size" in settings else {}
    made: Any = kind(**settings)
    return ChunkKV(scorer=made, **size) if chunked else made


def _setting(pair: str, types: dict[str, type], policy: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals or name not in types:
        raise OptionError(f"{pair!r} is no setting of {policy}, NAME=VALUE; its settings are {', '.join(types)}.")
    try:
        return name, _SWITCH[value] if types[name] is bool else types[name](value)
    except (KeyError, ValueError):
        wanted = "true or false" if types[name] is bool else f"a number ({types[name].__name__})"
        raise OptionError(f"{name} of {policy} is {value!r}, but must be {wanted}.") from None
